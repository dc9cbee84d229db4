//! `laneway config`: the commented reference.

use anyhow::Result;

use crate::config::REFERENCE;
use crate::output;

pub fn run() -> Result<()> {
    output::line(REFERENCE.trim_end())
}
