"""Scripts for people who build and release Cutlayer; no room imports them. They need the standard library and `wire` alone."""
