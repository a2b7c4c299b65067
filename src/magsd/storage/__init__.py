"""What VMs start from, as files on this machine: images and the layers they consist of."""
