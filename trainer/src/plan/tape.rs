//! The memory of one layer, by walking its ops as the tensor library does: what a forward pass holds and drops, what its
//! graph keeps, and which gradients live at the same time on the way back.
//!
//! The rules are those of candle. An op is part of the graph if any of its arguments is; it then keeps its arguments and
//! its output. A backward pass visits the nodes from the last to the first; at each it holds the node's gradient, the
//! gradients of the arguments as the op gives them, and the sum into which each of them goes (`sum = sum + gradient`: the
//! new sum exists beside the old one).

use std::collections::BTreeMap;

/// A tensor of a tape.
pub(super) type Slot = usize;

/// One op: what it needs besides its arguments and its output.
#[derive(Debug, Clone, Default)]
pub(super) struct Op {
    /// Its arguments, in the order in which the graph is walked.
    pub(super) inputs: Vec<Slot>,
    /// Bytes of the output.
    pub(super) output: u64,
    /// Bytes that only the forward pass needs.
    pub(super) scratch: u64,
    /// Bytes that the op keeps for its backward pass.
    pub(super) saved: u64,
    /// The saved bytes exist during the forward pass also where there is no graph.
    pub(super) saved_anyway: bool,
    /// Bytes that only the backward pass needs, besides the gradients it gives.
    pub(super) backward_scratch: u64,
    /// How the gradients of the arguments arise.
    pub(super) gives: Gives,
}

/// How an op gives the gradients of its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Gives {
    /// To those that want one, each in a buffer of its own.
    #[default]
    Wanted,
    /// To all of them, whether they want one or not.
    All,
    /// The node's own gradient is added to those of both arguments: there is no buffer between.
    Itself,
}

#[derive(Debug, Clone, Copy)]
struct Tensor {
    bytes: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The layer's input: it is counted by whoever keeps it.
    Input { wanted: bool },
    /// A trainable parameter; it is counted as one.
    Parameter,
    /// The output of an op.
    Output(usize),
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Run(usize),
    /// The forward code lets go of a tensor.
    Drop(Slot),
}

/// The ops of a layer in the order in which they run.
#[derive(Debug, Clone, Default)]
pub(super) struct Tape {
    tensors: Vec<Tensor>,
    ops: Vec<(Op, Slot)>,
    events: Vec<Event>,
}

/// What a layer takes, in bytes, without its input and its parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Most at any time of a forward pass without a graph, output included.
    pub(super) plain_peak: u64,
    /// Most at any time of a forward pass with a graph, output included.
    pub(super) graph_peak: u64,
    /// What the graph keeps, output included.
    pub(super) held: u64,
    /// Most at any time of the backward pass, graph and the gradient of the output included.
    pub(super) backward_peak: u64,
    /// Gradients of the layer's parameters.
    pub(super) gradients: u64,
    /// The largest of them.
    pub(super) largest_gradient: u64,
    /// The largest buffer of any op.
    pub(super) largest_buffer: u64,
}

// === impl Tape ===

impl Tape {
    fn tensor(&mut self, bytes: u64, kind: Kind) -> Slot {
        self.tensors.push(Tensor { bytes, kind });
        self.tensors.len() - 1
    }

    /// The layer's input; `wanted`: so is its gradient.
    pub(super) fn input(&mut self, bytes: u64, wanted: bool) -> Slot {
        self.tensor(bytes, Kind::Input { wanted })
    }

    /// A trainable parameter.
    pub(super) fn parameter(&mut self, bytes: u64) -> Slot {
        self.tensor(bytes, Kind::Parameter)
    }

    /// Runs an op.
    pub(super) fn run(&mut self, op: Op) -> Slot {
        let index = self.ops.len();
        let output = self.tensor(op.output, Kind::Output(index));
        self.ops.push((op, output));
        self.events.push(Event::Run(index));
        output
    }

    /// The forward code lets go of a tensor.
    pub(super) fn drop(&mut self, slot: Slot) {
        self.events.push(Event::Drop(slot));
    }

    pub(super) fn bytes(&self, slot: Slot) -> u64 {
        self.tensors[slot].bytes
    }

    /// What the layer takes; its output is that of the last op.
    pub(super) fn cost(&self) -> Cost {
        let tracked = self.tracked();
        let (plain_peak, _) = self.forward(&vec![false; self.tensors.len()]);
        let (graph_peak, held) = self.forward(&tracked);
        let parameters = |slot: &Slot| self.tensors[*slot].kind == Kind::Parameter;
        let gradients: Vec<u64> =
            (0..self.tensors.len()).filter(parameters).map(|slot| self.tensors[slot].bytes).collect();
        Cost {
            plain_peak,
            graph_peak,
            held,
            backward_peak: held + self.backward(&tracked),
            gradients: gradients.iter().sum(),
            largest_gradient: gradients.into_iter().max().unwrap_or_default(),
            largest_buffer: self
                .ops
                .iter()
                .map(|(op, _)| op.output.max(op.saved).max(op.scratch))
                .max()
                .unwrap_or_default(),
        }
    }

    /// Which tensors the graph leads to a variable from.
    fn tracked(&self) -> Vec<bool> {
        let mut tracked = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            tracked.push(match tensor.kind {
                Kind::Input { wanted } => wanted,
                Kind::Parameter => true,
                Kind::Output(op) => self.ops[op].0.inputs.iter().any(|&input| tracked[input]),
            });
        }
        tracked
    }

    /// The peak of a forward pass and what is left of it at the end.
    fn forward(&self, tracked: &[bool]) -> (u64, u64) {
        let mut kept = vec![false; self.tensors.len()];
        for (op, output) in self.ops.iter().filter(|(_, output)| tracked[*output]) {
            op.inputs.iter().for_each(|&input| kept[input] = true);
            kept[*output] = true;
        }
        let (mut live, mut peak) = (0, 0);
        for event in &self.events {
            match *event {
                Event::Run(index) => {
                    let (op, output) = &self.ops[index];
                    let saved = if tracked[*output] || op.saved_anyway { op.saved } else { 0 };
                    peak = peak.max(live + op.output + op.scratch + saved);
                    live += op.output + if tracked[*output] { op.saved } else { 0 };
                }
                Event::Drop(slot) if kept[slot] => {}
                Event::Drop(slot) => live -= self.tensors[slot].bytes,
            }
        }
        // What the forward code still holds when it returns goes with it.
        let graph = self.ops.iter().map(|(op, output)| match (tracked[*output], kept[*output]) {
            (true, _) => op.output + op.saved,
            (false, true) => op.output,
            (false, false) => 0,
        });
        (peak, graph.sum())
    }

    /// The order in which a backward pass visits the tracked outputs.
    fn order(&self, tracked: &[bool]) -> Vec<usize> {
        let Some(root) = self.ops.len().checked_sub(1) else { return Vec::new() };
        let mut seen = vec![false; self.ops.len()];
        let mut order = Vec::new();
        // The arguments of a node are walked one after the other, then the node itself is written down.
        let mut stack = vec![(root, 0)];
        seen[root] = true;
        while let Some((op, next)) = stack.pop() {
            let Some(&input) = self.ops[op].0.inputs.get(next) else {
                if tracked[self.ops[op].1] {
                    order.push(op);
                }
                continue;
            };
            stack.push((op, next + 1));
            if let Kind::Output(below) = self.tensors[input].kind
                && !seen[below]
            {
                seen[below] = true;
                stack.push((below, 0));
            }
        }
        order.reverse();
        order
    }

    /// The peak of a backward pass on top of the graph.
    fn backward(&self, tracked: &[bool]) -> u64 {
        let Some((_, root)) = self.ops.last() else { return 0 };
        let mut sums = BTreeMap::from([(*root, self.tensors[*root].bytes)]);
        let mut live = self.tensors[*root].bytes;
        let mut peak = live;
        for index in self.order(tracked) {
            let (op, output) = &self.ops[index];
            let Some(own) = sums.remove(output) else { continue };
            let wants = |slot: &&Slot| op.gives != Gives::Wanted || tracked[**slot];
            let targets: Vec<Slot> = op.inputs.iter().filter(wants).copied().collect();
            let given: u64 = match op.gives {
                Gives::Itself => 0,
                _ => targets.iter().map(|&slot| self.tensors[slot].bytes).sum(),
            };
            peak = peak.max(live + given + op.backward_scratch);
            for slot in targets {
                let bytes = self.tensors[slot].bytes;
                let before = sums.insert(slot, bytes);
                // Zeros that a sum begins with are pages that nobody wrote to.
                live += bytes;
                peak = peak.max(live + given);
                live -= before.unwrap_or_default();
            }
            live -= own;
        }
        peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(inputs: &[Slot], output: u64) -> Op {
        Op { inputs: inputs.to_vec(), output, ..Op::default() }
    }

    #[test]
    fn without_a_graph_dropped_tensors_are_gone_with_one_they_stay() {
        let mut tape = Tape::default();
        let x = tape.input(100, true);
        let a = tape.run(Op { scratch: 5, saved: 3, ..op(&[x], 10) });
        let b = tape.run(op(&[a], 20));
        tape.drop(a);
        tape.run(op(&[b], 40));
        let cost = tape.cost();
        // 10 + 20, then 20 + 40.
        assert_eq!((cost.plain_peak, cost.graph_peak, cost.held), (60, 73, 73));
    }

    #[test]
    fn what_leads_to_no_variable_is_not_kept() {
        let mut tape = Tape::default();
        let x = tape.input(100, false);
        let a = tape.run(op(&[x], 10));
        let p = tape.parameter(7);
        let b = tape.run(op(&[a], 20));
        tape.drop(a);
        tape.run(op(&[b, p], 40));
        let cost = tape.cost();
        // `b` is an argument of a tracked op; `a` is not.
        assert_eq!((cost.held, cost.gradients), (60, 7));
        // The output's gradient, the parameter's as it is given, and its sum.
        assert_eq!(cost.backward_peak, 60 + 40 + 7 + 7);
    }

    #[test]
    fn sums_of_gradients_exist_twice_while_they_grow() {
        let mut tape = Tape::default();
        let x = tape.input(10, true);
        let a = tape.run(op(&[x], 10));
        let b = tape.run(Op { gives: Gives::Itself, ..op(&[x, a], 10) });
        let cost = tape.cost();
        assert_eq!(tape.bytes(b), 10);
        // At the end: the gradient of `a`, what it gives to `x`, the old and the new sum of `x`.
        assert_eq!(cost.backward_peak, 20 + 40);
    }
}
