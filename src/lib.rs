//! Nothing: this package is its tests and benches.
