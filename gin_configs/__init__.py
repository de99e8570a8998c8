"""The shipped gin files; a package, so that an installed `pretrain` finds them."""
