//! Tests of Laneway from the outside: conformance of the stores, end-to-end runs, the structure of the workspace.
//!
//! The tests are under `tests/`; this library is empty.
