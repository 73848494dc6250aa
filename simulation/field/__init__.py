"""The field simulator: the real actors, codecs, frames, schedules and, where asked, engines, over modelled lines in virtual time."""
