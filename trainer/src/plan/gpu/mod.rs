//! The memory of a step on a card: a walk through [`crate::gpu`] in which nothing is computed and everything is asked for.
//!
//! The files here are named after those that they walk through, there and under `kernels/src/*/gpu`, and are written as these
//! are: what the code holds in a variable is held in one here. Pieces come from the arena that gives a card's memory, so that
//! the walk knows not only how much is in use, but also how much the gaps between take. Sizes of workspaces follow from
//! constants of the ops; a test holds the sum against every step of an emulated card.

mod attention;
mod base;
mod card;
mod delta_net;
mod experts;
mod head;
mod lasting;
mod layer;
mod linear;
mod mlp;
mod room;
mod step;
mod walk;

pub(super) use base::base_bytes;
pub(super) use step::GpuStep;
