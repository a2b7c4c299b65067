"""The shapes of replies about uploads."""

from pydantic import Field

from magsd.api.schemas import Reply


class UploadReply(Reply):
    """The file is kept."""

    file_id: str = Field(description="For `file_ids` of a job.")
    file_name: str = Field(description="What it is called in `/root`.")
    size: int = Field(description="Bytes.")
