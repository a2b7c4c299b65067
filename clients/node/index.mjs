import Mags from "./index.cjs";

const { MagsError } = Mags;

export { Mags, MagsError };
export default Mags;
