"""The commands of `gdist`, one file each."""
