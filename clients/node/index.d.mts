import Mags from "./index.cjs";

declare const MagsError: typeof Mags.MagsError;

export { Mags, MagsError };
export default Mags;
