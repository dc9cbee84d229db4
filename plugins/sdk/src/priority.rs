//! The named priorities. Any other integer is a priority too; higher is more urgent.

/// Work that may wait for hours.
pub const BULK: i32 = -100;
/// Work that may wait.
pub const LOW: i32 = -50;
/// What a producer gets that asks for nothing.
pub const NORMAL: i32 = 0;
/// Before ordinary work.
pub const HIGH: i32 = 50;
/// Before everything.
pub const CRITICAL: i32 = 100;
