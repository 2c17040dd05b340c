//! The gradients of one value head in one chunk, formula by formula from the last back.

use super::chunk::{Gates, Keys, product, scale, scale_rows, solve_transposed};
use crate::gemm::{
    Accumulate::{Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};

/// Tasks share out heads and documents, so a product stays on its thread.
const ONE: Threads = Threads::One;

/// Gradients of a chunk's normalised queries and keys, summed over the value heads of the key head.
pub(super) struct KeyGradients {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
}

/// One value head of one chunk: the quantities of the forward pass, by the names of its formulas.
pub(super) struct HeadChunk<'a> {
    pub(super) dk: usize,
    pub(super) dv: usize,
    pub(super) rows: usize,
    pub(super) keys: &'a Keys,
    pub(super) gates: Gates,
    /// `S`.
    pub(super) state: &'a [f32],
    /// `K S`.
    pub(super) recalled: Vec<f32>,
    /// `X`.
    pub(super) x: Vec<f32>,
    /// `L`.
    pub(super) l: Vec<f32>,
    /// `N`.
    pub(super) written: Vec<f32>,
    /// `P`.
    pub(super) weights: Vec<f32>,
    /// `exp(G_C − G) ⊙ K`.
    pub(super) kept: Vec<f32>,
    /// Gradient of the output.
    pub(super) dout: Vec<f32>,
}

/// Gradients of a head's gates, one per row.
pub(super) struct GateGradients {
    /// Of `G`.
    pub(super) sums: Vec<f32>,
    pub(super) beta: Vec<f32>,
}

// === impl HeadChunk ===

impl HeadChunk<'_> {
    /// A matrix `[rows, dk]`.
    fn of_keys<'m>(&self, values: &'m [f32]) -> MatRef<'m> {
        MatRef::new(values, self.rows, self.dk)
    }

    /// A matrix `[rows, dv]`.
    fn of_values<'m>(&self, values: &'m [f32]) -> MatRef<'m> {
        MatRef::new(values, self.rows, self.dv)
    }

    /// A matrix `[rows, rows]`.
    fn square<'m>(&self, values: &'m [f32]) -> MatRef<'m> {
        MatRef::new(values, self.rows, self.rows)
    }

    /// A matrix `[dk, dv]`.
    fn of_state<'m>(&self, values: &'m [f32]) -> MatRef<'m> {
        MatRef::new(values, self.dk, self.dv)
    }

    /// `dN = Pᵀ dO + (exp(G_C − G) ⊙ K) dS`.
    pub(super) fn written_gradient(&self, dstate: &[f32]) -> Vec<f32> {
        let (rows, dv) = (self.rows, self.dv);
        let mut dwritten = vec![0.0; rows * dv];
        let (weights, dout) = (self.square(&self.weights), self.of_values(&self.dout));
        gemm(MatMut::new(&mut dwritten, rows, dv), Overwrite, 1.0, weights.t(), dout, ONE);
        let (kept, dstate) = (self.of_keys(&self.kept), self.of_state(dstate));
        gemm(MatMut::new(&mut dwritten, rows, dv), Add, 1.0, kept, dstate, ONE);
        dwritten
    }

    /// The state's update: gradients of the kept keys and of the chunk's whole decay.
    pub(super) fn through_update(&self, dstate: &[f32], dkeys: &mut KeyGradients, dgates: &mut GateGradients) {
        let (rows, dk) = (self.rows, self.dk);
        let mut dkept = vec![0.0; rows * dk];
        let written = self.of_values(&self.written);
        gemm(MatMut::new(&mut dkept, rows, dk), Overwrite, 1.0, written, self.of_state(dstate).t(), ONE);
        let mut dlast = self.gates.whole * dot(dstate, self.state);
        for i in 0..rows {
            let moved = dot(&dkept[i * dk..][..dk], &self.kept[i * dk..][..dk]);
            dlast += moved;
            dgates.sums[i] -= moved;
            for (d, s) in dkeys.k[i * dk..][..dk].iter_mut().zip(&dkept[i * dk..][..dk]) {
                *d += self.gates.remaining[i] * s;
            }
        }
        dgates.sums[rows - 1] += dlast;
    }

    /// `dP`, and through it the queries, keys and decays.
    pub(super) fn through_weights(&self, dkeys: &mut KeyGradients, dgates: &mut GateGradients) {
        let (rows, dk) = (self.rows, self.dk);
        let dsums = &mut dgates.sums[..];
        let mut dweights = vec![0.0; rows * rows];
        let (dout, written) = (self.of_values(&self.dout), self.of_values(&self.written));
        gemm(MatMut::new(&mut dweights, rows, rows), Overwrite, 1.0, dout, written.t(), ONE);
        for i in 0..rows {
            for j in 0..=i {
                let through = dweights[i * rows + j] * self.weights[i * rows + j];
                dsums[i] += through;
                dsums[j] -= through;
            }
        }
        let dqk = product(&dweights, &self.gates.between);
        let (dqk, q, k) = (self.square(&dqk), self.of_keys(&self.keys.q), self.of_keys(&self.keys.k));
        gemm(MatMut::new(&mut dkeys.q, rows, dk), Add, 1.0, dqk, k, ONE);
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, dqk.t(), q, ONE);
    }

    /// `E ⊙ (Q S)`; `dstate` goes from the state after the chunk to the one before it.
    pub(super) fn through_read(&self, dstate: &mut [f32], dkeys: &mut KeyGradients, dgates: &mut GateGradients) {
        let (rows, dk, dv) = (self.rows, self.dk, self.dv);
        let mut dread = vec![0.0; rows * dk];
        let dout = self.of_values(&self.dout);
        gemm(MatMut::new(&mut dread, rows, dk), Overwrite, 1.0, dout, self.of_state(self.state).t(), ONE);
        let decayed_q = scale_rows(&self.keys.q, &self.gates.decay, dk);
        for i in 0..rows {
            dgates.sums[i] += dot(&dread[i * dk..][..dk], &decayed_q[i * dk..][..dk]);
            for (d, s) in dkeys.q[i * dk..][..dk].iter_mut().zip(&dread[i * dk..][..dk]) {
                *d += self.gates.decay[i] * s;
            }
        }
        scale(dstate, self.gates.whole);
        gemm(MatMut::new(dstate, dk, dv), Add, 1.0, self.of_keys(&decayed_q).t(), dout, ONE);
    }

    /// `N = (I + L)⁻¹ R`: `dR = (I + L)⁻ᵀ dN`, in place of `dN`, and `dL = −strictly_lower(dR Nᵀ)`.
    pub(super) fn through_solve(&self, dwritten: &mut [f32], dkeys: &mut KeyGradients, dgates: &mut GateGradients) {
        let (rows, dk, dv) = (self.rows, self.dk, self.dv);
        let GateGradients { sums: dsums, beta: dbeta } = dgates;
        let (dsums, dbeta) = (&mut dsums[..], &mut dbeta[..]);
        solve_transposed(&self.l, dwritten, rows, dv);
        let (dr, written) = (self.of_values(dwritten), self.of_values(&self.written));
        let mut dl = vec![0.0; rows * rows];
        gemm(MatMut::new(&mut dl, rows, rows), Overwrite, -1.0, dr, written.t(), ONE);
        for i in 0..rows {
            for j in 0..rows {
                let ij = i * rows + j;
                if j >= i {
                    dl[ij] = 0.0;
                    continue;
                }
                let through = dl[ij] * self.l[ij];
                dsums[i] += through;
                dsums[j] -= through;
                let masked = dl[ij] * self.gates.between[ij];
                dbeta[i] += masked * self.keys.kk[ij];
                dl[ij] = masked * self.gates.beta[i];
            }
        }
        let (dl, k) = (self.square(&dl), self.of_keys(&self.keys.k));
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, dl, k, ONE);
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, dl.t(), k, ONE);
    }

    /// `R = beta ⊙ X`, `X = V − E ⊙ (K S)`; returns the gradient of the values.
    pub(super) fn through_surprise(
        &self,
        dr: &[f32],
        dstate: &mut [f32],
        dkeys: &mut KeyGradients,
        dgates: &mut GateGradients,
    ) -> Vec<f32> {
        let (rows, dk, dv) = (self.rows, self.dk, self.dv);
        for i in 0..rows {
            dgates.beta[i] += dot(&dr[i * dv..][..dv], &self.x[i * dv..][..dv]);
        }
        let dx = scale_rows(dr, &self.gates.beta, dv);
        let mut drecalled = scale_rows(&dx, &self.gates.decay, dv);
        drecalled.iter_mut().for_each(|v| *v = -*v);
        for i in 0..rows {
            dgates.sums[i] += dot(&drecalled[i * dv..][..dv], &self.recalled[i * dv..][..dv]);
        }
        let drecalled = self.of_values(&drecalled);
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, drecalled, self.of_state(self.state).t(), ONE);
        gemm(MatMut::new(dstate, dk, dv), Add, 1.0, self.of_keys(&self.keys.k).t(), drecalled, ONE);
        dx
    }
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
