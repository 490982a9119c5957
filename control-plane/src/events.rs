//! What happens, for those who watch: kept in a bounded ring, told from a cursor on (DESIGN §4, §10).
//!
//! Here: the ring, cursors, and the stream for one watcher. Not here: what is an event (`telemetry`), wire shapes of SSE.
