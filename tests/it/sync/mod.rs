//! Locks, semaphores, conditions, barriers and events between processes: one file a primitive.

mod lock;
