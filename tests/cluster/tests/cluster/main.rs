//! A cluster of real processes, and whatever may happen to it: by name, one file a theme.

mod fsync;
