"""Parts that the configs of the MPU-Net liver CT bundle name."""

import warnings

# MONAI's word about a reader that nothing here uses, wherever pydicom is installed
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
