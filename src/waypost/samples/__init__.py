"""The sample services: what the demo runs, and an example of what a service needs to know of waypost (nothing).

They need the standard library only and import nothing else of waypost, so this package can be copied into a container
image as it is (`image.py` does that).
"""
