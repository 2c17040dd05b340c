//! From a file to micro-batches: lines, examples, tokens with loss masks, split, order, packing; and what there is to say
//! about it.

pub mod batches;
pub mod dump;
pub mod encode;
pub mod example;
pub mod facts;
pub mod finding;
pub mod packing;
pub mod prepare;
pub(crate) mod random;
pub mod records;
pub mod report;
pub mod split;
pub mod store;
pub mod template;
