//! Small plugins for the tests. Each example is one component, so that one crate makes them all; there is nothing here.
