//! (in the making)
mod layout;
pub use layout::HeadGroups;
