//! primary
