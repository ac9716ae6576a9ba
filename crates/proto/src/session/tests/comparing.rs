//! Comparing under writes: what the master answers, and when; and what a slave makes of it.
