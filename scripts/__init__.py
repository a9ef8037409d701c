"""Parts that the configs of the MPU-Net liver CT bundle name."""
