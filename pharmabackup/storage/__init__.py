"""One adapter a kind of storage. See base.py for what every adapter promises."""
