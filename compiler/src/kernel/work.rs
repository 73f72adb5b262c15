//! What a launch has to do: arithmetic and memory traffic, for profiles and comparisons with the limits
//! of a machine.

use super::attention;
use super::gemm::{Format, RowZeros};
use super::nest::{Access, Effect, Expr, ExprId, Nest, ReduceOp};
use super::pack::{Form, Range};
use super::{Body, Extent, Program, Step, Storage};
use cranelift_entity::PrimaryMap;
use std::collections::BTreeMap;
use tfc_ir::dim::Dim;
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// The arithmetic that limits a contraction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Arithmetic {
    /// f32 multiply-adds.
    F32,
    /// Products of 8-bit integers (4-bit weights are widened on the way), summed in 32 bits.
    I8,
}

impl Arithmetic {
    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::F32 => "f32",
            Arithmetic::I8 => "i8",
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Arithmetic> {
        [Arithmetic::F32, Arithmetic::I8].into_iter().find(|a| a.name() == name)
    }
}

/// The work of a launch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Work {
    /// Operations of contractions: two per multiply-add. 0 for everything else.
    pub operations: Dim,
    /// What these are; `None` if there are none, or they are of another kind.
    pub arithmetic: Option<Arithmetic>,
    /// Bytes read from or written to buffers, each byte once per launch.
    pub bytes: Dim,
    /// Those of `bytes` that are weights.
    pub weight_bytes: Dim,
}

/// The work of a step of a program.
pub fn of(program: &Program, step: &Step) -> Work {
    let kernel = &program.kernels[step.kernel];
    let size = |e: Extent| e.of(&step.ints);
    let sizes = |es: &[Extent]| es.iter().map(|&e| size(e)).collect::<Vec<Dim>>();
    let mut touched = Touched::default();
    let (multiply_adds, arithmetic) = match &kernel.body {
        Body::Nest(nest) => {
            let loops = sizes(&nest.extents());
            touched.exprs(&nest.exprs, nest.stages.iter().flat_map(|s| &s.effects), &loops);
            match product(nest) {
                Some(elem) => (loops.into_iter().product(), arithmetic(elem)),
                None => (Dim::from(0), None),
            }
        }
        Body::Gemm(gemm) => {
            let (m, n, k) = (size(gemm.m), size(gemm.n), size(gemm.k));
            let mut loops = sizes(&gemm.batch);
            let batch: Dim = loops.iter().cloned().product();
            loops.extend([m.clone(), n.clone()]);
            touched.exprs(&gemm.exprs, &gemm.effects, &loops);
            touched.all(gemm.left.buffer);
            touched.all(gemm.right.buffer);
            let arithmetic = match &gemm.format {
                Format::Floats(_) => Arithmetic::F32,
                Format::Dequantized(d) => {
                    touched.all(d.columns);
                    Arithmetic::F32
                }
                Format::Quantized(q) => {
                    touched.all(q.columns);
                    touched.all(q.sums);
                    if let RowZeros::Each(buffer) = q.row_zeros {
                        touched.all(buffer);
                    }
                    Arithmetic::I8
                }
            };
            (batch * m * n * k, Some(arithmetic))
        }
        Body::Pack(pack) => {
            if let Some(nest) = &pack.made_by {
                touched.exprs(&nest.exprs, nest.stages.iter().flat_map(|s| &s.effects), &sizes(&nest.extents()));
            }
            touched.all(pack.from.buffer);
            touched.all(pack.to);
            match pack.form {
                Form::Quantize { range: Range::OfRow { scales, zeros }, .. } => {
                    [scales].into_iter().chain(zeros).for_each(|b| touched.all(b))
                }
                Form::Quantize { range: Range::Fixed { site }, .. } => touched.all(site),
                Form::Floats | Form::Bytes(_) => {}
            }
            if let Some(sums) = pack.form.sums() {
                touched.all(sums.buffer);
            }
            (Dim::from(0), None)
        }
        Body::Attention(a) => {
            let [batch, heads, queries, keys] = [a.batch, a.heads, a.queries, a.keys].map(size);
            let rows = batch.clone() * heads.clone() * queries.clone();
            for buffer in [a.q.buffer, a.k, a.v, a.out.buffer] {
                touched.all(buffer);
            }
            let arithmetic = match &a.format {
                attention::Format::F32 => Arithmetic::F32,
                attention::Format::Bytes(b) => {
                    for buffer in [b.key_scales, b.key_sums, b.value_scales] {
                        touched.all(buffer);
                    }
                    Arithmetic::I8
                }
            };
            if let Some(bias) = &a.bias {
                touched.access(bias, &PrimaryMap::new(), &[batch, heads, queries, keys.clone()]);
            }
            (rows * keys * Dim::from(a.depth + a.value_depth), Some(arithmetic))
        }
        Body::TopK(t) => {
            let none = PrimaryMap::new();
            for (access, len) in [(&t.from, t.n), (&t.values, t.k), (&t.positions, t.k)] {
                let mut loops = sizes(&t.rows);
                loops.push(size(len));
                touched.access(access, &none, &loops);
            }
            (Dim::from(0), None)
        }
    };
    let mut work = Work { operations: Dim::from(2) * multiply_adds, arithmetic, bytes: Dim::from(0), weight_bytes: Dim::from(0) };
    for (param, elements) in touched.0 {
        let data = &program.buffers[step.buffers[param as usize].buffer];
        let elem = kernel.buffers[param as usize].elem;
        let bytes = match elements {
            Some(n) => (n * Dim::from(i64::from(elem.bits()))).ceil_div(8).minimum(&data.bytes),
            None => data.bytes.clone(),
        };
        if matches!(data.storage, Storage::Weights(_)) {
            work.weight_bytes = work.weight_bytes + bytes.clone();
        }
        work.bytes = work.bytes + bytes;
    }
    for d in [&mut work.operations, &mut work.bytes, &mut work.weight_bytes] {
        *d = d.simplify(&program.symbols);
    }
    work
}

fn arithmetic(elem: Elem) -> Option<Arithmetic> {
    match elem {
        Elem::F32 => Some(Arithmetic::F32),
        Elem::I8 | Elem::U8 => Some(Arithmetic::I8),
        _ => None,
    }
}

/// The element type if a nest sums products of loaded elements.
fn product(nest: &Nest) -> Option<Elem> {
    let loads = |e: ExprId| matches!(nest.exprs[e].0, Expr::Load(_));
    let sums = |e: &Effect| match e {
        Effect::Reduce(r, x) if nest.reductions[*r].0 == ReduceOp::Sum => match &nest.exprs[*x] {
            (Expr::Prim(Prim::Mul, xs), elem) if xs.len() == 2 && xs[0] != xs[1] && xs.iter().all(|x| loads(*x)) => Some(*elem),
            _ => None,
        },
        _ => None,
    };
    nest.stages.iter().flat_map(|s| &s.effects).find_map(sums)
}

/// Elements of each buffer parameter that a launch touches; `None` for all of them.
#[derive(Default)]
struct Touched(BTreeMap<u32, Option<Dim>>);

impl Touched {
    fn all(&mut self, buffer: u32) {
        self.0.insert(buffer, None);
    }

    fn exprs<'a>(&mut self, exprs: &PrimaryMap<ExprId, (Expr, Elem)>, effects: impl IntoIterator<Item = &'a Effect>, loops: &[Dim]) {
        for (e, _) in exprs.values() {
            if let Expr::Load(access) = e {
                self.access(access, exprs, loops);
            }
        }
        for e in effects {
            if let Effect::Store(access, _) = e {
                self.access(access, exprs, loops);
            }
        }
    }

    /// An access touches an element per iteration of the loops that it depends on. Of several accesses to a
    /// buffer the first counts: they overlap as a rule.
    fn access(&mut self, access: &Access, exprs: &PrimaryMap<ExprId, (Expr, Elem)>, loops: &[Dim]) {
        let mut used = vec![false; loops.len()];
        depends(access, exprs, &mut used);
        let elements = loops.iter().zip(used).filter(|(_, u)| *u).map(|(d, _)| d.clone()).product();
        self.0.entry(access.buffer).or_insert(Some(elements));
    }
}

fn depends(access: &Access, exprs: &PrimaryMap<ExprId, (Expr, Elem)>, used: &mut [bool]) {
    for (used, stride) in used.iter_mut().zip(&access.strides) {
        *used |= stride.as_const() != Some(0);
    }
    for &(index, _) in &access.dynamic {
        depends_expr(index, exprs, used);
    }
}

fn depends_expr(e: ExprId, exprs: &PrimaryMap<ExprId, (Expr, Elem)>, used: &mut [bool]) {
    match &exprs[e].0 {
        Expr::Load(access) => depends(access, exprs, used),
        Expr::Index(l) => used[*l as usize] = true,
        Expr::Prim(_, operands) => operands.iter().for_each(|&x| depends_expr(x, exprs, used)),
        Expr::CheckedIndex(x, _) => depends_expr(*x, exprs, used),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use crate::driver;
    use tfc_ir::text;

    /// The work of every step as text.
    fn works(graph: &str) -> Vec<String> {
        let graph = text::parse(graph, None).expect("a graph");
        let graph = driver::optimize(graph, &driver::Options::default(), |_| Ok(std::ops::ControlFlow::Continue(()))).expect("passes");
        let program = driver::lower(&graph).expect("a program");
        let one = |s: &super::Step| {
            let w = super::of(&program, s);
            format!("{} {:?} {} of {}", w.operations, w.arithmetic, w.weight_bytes, w.bytes)
        };
        program.steps.iter().map(one).collect()
    }

    #[test]
    fn products_and_traffic_are_counted() {
        let steps = works(
            "tfc.ir 1\n\nsymbol n 1..64\n\ninput %x: f32[n, 32]\ninput %w: f32[32, 16]\ninput %b: f32[16]\n\n\
             %p = matmul %x, %w : f32[n, 16]\n%y = add %p, %b : f32[n, 16]\n\noutput y = %y\n",
        );
        let last = steps.last().expect("steps");
        // Twice n * 16 * 32; the result, tiles of 12 rows and what is behind them, the packed matrix, the bias.
        assert_eq!(last, "1024*n Some(F32) 0 of 64*n+1536*div(n+11, 12)+4224");
    }

    #[test]
    fn gathers_count_what_they_read_and_not_the_table() {
        let steps =
            works("tfc.ir 1\n\ninput %t: f32[1000, 8]\ninput %i: i64[3]\n\n%y = gather %t, %i {axis = 0} : f32[3, 8]\n\noutput y = %y\n");
        assert_eq!(steps, ["0 None 0 of 216"]);
    }

    #[test]
    fn a_sum_of_products_is_a_contraction_in_a_nest_too() {
        let steps = works("tfc.ir 1\n\ninput %x: i64[4, 32]\ninput %w: i64[32, 16]\n\n%p = matmul %x, %w : i64[4, 16]\n\noutput y = %p\n");
        assert_eq!(steps, [format!("{} None 0 of {}", 2 * 4 * 32 * 16, 8 * (4 * 32 + 32 * 16 + 4 * 16))]);
    }
}
