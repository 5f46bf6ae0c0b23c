"""Questions about access control itself: why, who can, what looks wrong."""
