//! An assembler with virtual registers. Code is a list of instructions over registers without number,
//! labels and jumps; [`Asm::finish`] gives the registers numbers ([`alloc`](super::alloc)), frames the
//! function and encodes it ([`encode`](super::encode)).
//!
//! Vector values are 32-bit lanes, as many as the instruction set has. Methods that return a register
//! define a new one; methods that end in `_into` change one. A last operand may be memory or a constant
//! ([`Src`]): constants live behind the code and cost no register.

use super::isa::{Isa, Op, Width};
use iced_x86::Code;

/// A virtual register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Reg(pub(super) u32);

/// A vector register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct V(pub(super) Reg);

/// A general register of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct R(pub(super) Reg);

/// Lanes that are chosen: what a comparison gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct M(pub(super) Reg);

/// The file of a virtual register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Vectors.
    Vector,
    /// General registers.
    General,
    /// Opmask registers; without EVEX masks are vectors.
    Mask,
}

/// A register of a matrix tile, by its number: eight of them, all of 16 rows of 64 bytes. They have no virtual
/// registers: a kernel gives each its part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile(pub u8);

/// A place in memory: `base + index * scale + disp` in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mem {
    /// Base address.
    pub base: R,
    /// A further offset and its factor, 1, 2, 4 or 8.
    pub index: Option<(R, u32)>,
    /// A constant offset.
    pub disp: i64,
}

impl Mem {
    /// The place `disp` bytes behind an address.
    pub fn at(base: R, disp: i64) -> Mem {
        Mem { base, index: None, disp }
    }

    /// The same with an offset in a register.
    pub fn indexed(base: R, index: R, scale: u32, disp: i64) -> Mem {
        Mem { base, index: Some((index, scale)), disp }
    }

    /// The place some bytes behind.
    pub fn plus(self, disp: i64) -> Mem {
        Mem { disp: self.disp + disp, ..self }
    }
}

/// The last operand of a vector operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Src {
    /// A register.
    Reg(V),
    /// A vector in memory, not necessarily aligned.
    Mem(Mem),
    /// 32 bits, the same in every lane.
    Splat(u32),
    /// A constant for each lane, of [`Asm::table`].
    Table(Table),
    /// A vector of the frame.
    Local(Local),
}

/// A vector of the frame, which costs no register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local(pub(super) i64);

impl From<Local> for Src {
    fn from(l: Local) -> Src {
        Src::Local(l)
    }
}

/// Constants, one for each of 16 lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table(pub(super) usize);

impl From<Table> for Src {
    fn from(t: Table) -> Src {
        Src::Table(t)
    }
}

impl From<V> for Src {
    fn from(v: V) -> Src {
        Src::Reg(v)
    }
}

impl From<Mem> for Src {
    fn from(m: Mem) -> Src {
        Src::Mem(m)
    }
}

impl From<f32> for Src {
    fn from(x: f32) -> Src {
        Src::Splat(x.to_bits())
    }
}

impl From<i32> for Src {
    fn from(x: i32) -> Src {
        Src::Splat(x as u32)
    }
}

/// A position that jumps name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Label(pub(super) u32);

/// A condition on the last comparison of general registers, as signed numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cond {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater or equal.
    Ge,
    /// Greater.
    Gt,
}

/// An operand of an instruction.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Operand {
    /// A register and how wide it is here.
    Reg(Reg, Width),
    /// A register of a matrix tile.
    Tile(Tile),
    /// Memory.
    Mem(Mem),
    /// A constant in every lane.
    Splat(u32),
    /// A constant for each lane.
    Table(Table),
    /// A vector of the frame.
    Local(Local),
    /// An immediate of 8 bits.
    Imm8(u8),
    /// An immediate of 32 bits, sign-extended.
    Imm32(i32),
    /// An immediate of 64 bits.
    Imm64(i64),
}

/// How an instruction touches its first register operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    /// It writes it.
    Write,
    /// It reads and writes it.
    Update,
    /// It only reads it.
    Read,
}

/// An instruction, or what stands between instructions.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Ins {
    /// A machine instruction.
    Code {
        code: Code,
        operands: Vec<Operand>,
        first: First,
        /// EVEX: lanes that are written; whether the others become 0 instead of staying.
        mask: Option<(Reg, bool)>,
    },
    /// `dst = x * y + z`, whichever operand may be overwritten.
    Fma { dst: Reg, x: Reg, y: Operand, z: Operand },
    /// `dst = src` of one class.
    Move { dst: Reg, src: Reg },
    /// Unsigned quotient and remainder of 64 bits.
    Divide { quotient: Reg, remainder: Reg, x: Reg, by: Reg },
    /// The address of the scratch area of the frame, `offset` bytes in.
    Scratch { dst: Reg, offset: i64 },
    /// A label.
    Bind(Label),
    /// A jump, conditional or not.
    Jump(Option<Cond>, Label),
}

/// A function under construction.
pub struct Asm {
    /// The instruction set.
    pub isa: Isa,
    pub(super) classes: Vec<Class>,
    pub(super) ins: Vec<Ins>,
    pub(super) labels: u32,
    /// The different tables.
    pub(super) tables: Vec<[u32; 16]>,
    /// Bytes of scratch memory in the frame.
    pub(super) scratch: i64,
    /// The parameters: args, begin, end.
    pub(super) params: [Reg; 3],
}

impl Asm {
    /// An empty function of three integer parameters.
    pub fn new(isa: Isa) -> (Asm, [R; 3]) {
        let mut a = Asm { isa, classes: vec![], ins: vec![], labels: 0, tables: vec![], scratch: 0, params: [Reg(0), Reg(1), Reg(2)] };
        let params = std::array::from_fn(|_| a.r());
        (a, params)
    }

    fn reg(&mut self, class: Class) -> Reg {
        self.classes.push(class);
        Reg(self.classes.len() as u32 - 1)
    }

    /// A vector register that nothing was written to yet.
    pub fn v(&mut self) -> V {
        V(self.reg(Class::Vector))
    }

    /// A general register that nothing was written to yet.
    pub fn r(&mut self) -> R {
        R(self.reg(Class::General))
    }

    fn m(&mut self) -> M {
        M(self.reg(if self.isa.evex() { Class::Mask } else { Class::Vector }))
    }

    fn push(&mut self, code: Code, first: First, operands: Vec<Operand>) {
        self.push_masked(code, first, operands, None);
    }

    fn push_masked(&mut self, code: Code, first: First, mut operands: Vec<Operand>, mask: Option<(Reg, bool)>) {
        for o in &mut operands {
            if let Operand::Mem(m) = o {
                *m = self.within_reach(*m);
            }
        }
        self.ins.push(Ins::Code { code, operands, first, mask });
    }

    /// The same place with a constant offset that an instruction can hold, which has 32 bits.
    fn within_reach(&mut self, m: Mem) -> Mem {
        if i32::try_from(m.disp).is_ok() {
            return m;
        }
        let far = self.imm(m.disp);
        Mem { base: self.lea(Mem::indexed(m.base, far, 1, 0)), disp: 0, ..m }
    }

    // General registers.

    /// A number.
    pub fn imm(&mut self, n: i64) -> R {
        let r = self.r();
        self.imm_into(r, n);
        r
    }

    /// Sets a register to a number.
    pub fn imm_into(&mut self, r: R, n: i64) {
        match i32::try_from(n) {
            Ok(n) => self.push(Code::Mov_rm64_imm32, First::Write, vec![long(r), Operand::Imm32(n)]),
            Err(_) => self.push(Code::Mov_r64_imm64, First::Write, vec![long(r), Operand::Imm64(n)]),
        }
    }

    /// A copy.
    pub fn copy(&mut self, r: R) -> R {
        let dst = self.r();
        self.copy_into(dst, r);
        dst
    }

    /// `dst = r`.
    pub fn copy_into(&mut self, dst: R, r: R) {
        self.ins.push(Ins::Move { dst: dst.0, src: r.0 });
    }

    /// `x, y = y, x`.
    pub fn swap(&mut self, x: R, y: R) {
        let before = self.copy(x);
        self.copy_into(x, y);
        self.copy_into(y, before);
    }

    /// 64 bits of memory.
    pub fn load(&mut self, m: Mem) -> R {
        let r = self.r();
        self.push(Code::Mov_r64_rm64, First::Write, vec![long(r), Operand::Mem(m)]);
        r
    }

    /// A byte of memory, zero-extended.
    pub fn load_byte(&mut self, m: Mem) -> R {
        let r = self.r();
        self.push(Code::Movzx_r32_rm8, First::Write, vec![Operand::Reg(r.0, Width::Word), Operand::Mem(m)]);
        r
    }

    /// A byte of memory, sign-extended.
    pub fn load_signed_byte(&mut self, m: Mem) -> R {
        let r = self.r();
        self.push(Code::Movsx_r64_rm8, First::Write, vec![long(r), Operand::Mem(m)]);
        r
    }

    /// 32 bits of memory, sign-extended.
    pub fn load_word(&mut self, m: Mem) -> R {
        let r = self.r();
        self.push(Code::Movsxd_r64_rm32, First::Write, vec![long(r), Operand::Mem(m)]);
        r
    }

    /// Stores 64 bits.
    pub fn store(&mut self, m: Mem, r: R) {
        self.push(Code::Mov_rm64_r64, First::Read, vec![Operand::Mem(m), long(r)]);
    }

    /// Stores 32 bits.
    pub fn store_word(&mut self, m: Mem, r: R) {
        self.push(Code::Mov_rm32_r32, First::Read, vec![Operand::Mem(m), Operand::Reg(r.0, Width::Word)]);
    }

    /// The address of a place.
    pub fn lea(&mut self, m: Mem) -> R {
        let r = self.r();
        self.lea_into(r, m);
        r
    }

    /// `dst` = the address of a place.
    pub fn lea_into(&mut self, dst: R, m: Mem) {
        self.push(Code::Lea_r64_m, First::Write, vec![long(dst), Operand::Mem(m)]);
    }

    /// `x + y`.
    pub fn plus(&mut self, x: R, y: R) -> R {
        self.lea(Mem::indexed(x, y, 1, 0))
    }

    /// `x += y`.
    pub fn add_into(&mut self, x: R, y: R) {
        self.push(Code::Add_r64_rm64, First::Update, vec![long(x), long(y)]);
    }

    /// `x += n`.
    pub fn add_imm(&mut self, x: R, n: i64) {
        match i32::try_from(n) {
            Ok(n) => self.push(Code::Add_rm64_imm32, First::Update, vec![long(x), Operand::Imm32(n)]),
            Err(_) => {
                let n = self.imm(n);
                self.add_into(x, n);
            }
        }
    }

    /// `x -= y`.
    pub fn sub_into(&mut self, x: R, y: R) {
        self.push(Code::Sub_r64_rm64, First::Update, vec![long(x), long(y)]);
    }

    /// `x - y`.
    pub fn minus(&mut self, x: R, y: R) -> R {
        let r = self.copy(x);
        self.sub_into(r, y);
        r
    }

    /// `x * y`.
    pub fn times(&mut self, x: R, y: R) -> R {
        let r = self.copy(x);
        self.push(Code::Imul_r64_rm64, First::Update, vec![long(r), long(y)]);
        r
    }

    /// `x * n`.
    pub fn times_imm(&mut self, x: R, n: i64) -> R {
        match n {
            0 => self.imm(0),
            1 => self.copy(x),
            n if n > 0 && n & (n - 1) == 0 => {
                let r = self.copy(x);
                self.push(Code::Shl_rm64_imm8, First::Update, vec![long(r), Operand::Imm8(n.trailing_zeros() as u8)]);
                r
            }
            _ => match i32::try_from(n) {
                Ok(n) => {
                    let r = self.r();
                    self.push(Code::Imul_r64_rm64_imm32, First::Write, vec![long(r), long(x), Operand::Imm32(n)]);
                    r
                }
                Err(_) => {
                    let n = self.imm(n);
                    self.times(x, n)
                }
            },
        }
    }

    /// `x / 2`, of a number that is not negative.
    pub fn half(&mut self, x: R) -> R {
        let r = self.copy(x);
        self.push(Code::Shr_rm64_imm8, First::Update, vec![long(r), Operand::Imm8(1)]);
        r
    }

    /// Quotient and remainder of numbers that are not negative.
    pub fn divide(&mut self, x: R, by: R) -> (R, R) {
        let (q, r) = (self.r(), self.r());
        self.ins.push(Ins::Divide { quotient: q.0, remainder: r.0, x: x.0, by: by.0 });
        (q, r)
    }

    /// The lesser of two numbers.
    pub fn min(&mut self, x: R, y: R) -> R {
        let r = self.copy(x);
        self.compare(r, y);
        self.push(Code::Cmovg_r64_rm64, First::Update, vec![long(r), long(y)]);
        r
    }

    /// The greater of two numbers.
    pub fn max(&mut self, x: R, y: R) -> R {
        let r = self.copy(x);
        self.compare(r, y);
        self.push(Code::Cmovl_r64_rm64, First::Update, vec![long(r), long(y)]);
        r
    }

    /// Compares two registers for the next jump.
    pub fn compare(&mut self, x: R, y: R) {
        self.push(Code::Cmp_r64_rm64, First::Read, vec![long(x), long(y)]);
    }

    /// Compares a register with a number.
    pub fn compare_imm(&mut self, x: R, n: i64) {
        match i32::try_from(n) {
            Ok(n) => self.push(Code::Cmp_rm64_imm32, First::Read, vec![long(x), Operand::Imm32(n)]),
            Err(_) => {
                let n = self.imm(n);
                self.compare(x, n);
            }
        }
    }

    /// The address of a new area of scratch memory of the frame, aligned to 64 bytes.
    pub fn scratch(&mut self, bytes: i64) -> R {
        let offset = self.scratch;
        self.scratch += (bytes + 63) / 64 * 64;
        let dst = self.r();
        self.ins.push(Ins::Scratch { dst: dst.0, offset });
        dst
    }

    /// Puts a vector into the frame.
    pub fn local(&mut self, x: V) -> Local {
        let local = Local(self.scratch);
        self.scratch += 64;
        self.vector(Op::Store, First::Read, &[Operand::Local(local), reg(x)], None, None);
        local
    }

    /// Fetches the cache line of a place, to be written or only read.
    pub fn prefetch(&mut self, m: Mem, write: bool) {
        self.push(if write { Code::Prefetchw_m8 } else { Code::Prefetcht0_m8 }, First::Read, vec![Operand::Mem(m)]);
    }

    /// Fetches a line into the second-level cache.
    pub fn prefetch_far(&mut self, m: Mem) {
        self.push(Code::Prefetcht1_m8, First::Read, vec![Operand::Mem(m)]);
    }

    // Matrix tiles.

    /// Gives all tiles their shape, and clears them.
    pub fn configure_tiles(&mut self) {
        let mut bytes = [0u8; 64];
        bytes[0] = 1; // the palette
        (16..32).step_by(2).for_each(|i| bytes[i] = 64); // bytes of a row, 16 bits each
        (48..56).for_each(|i| bytes[i] = 16); // rows
        let shape = self.words(std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|b| bytes[4 * i + b]))));
        self.push(Code::VEX_Ldtilecfg_m512, First::Read, vec![Operand::Table(shape)]);
    }

    /// Gives the tiles up: the operating system need not keep them any more.
    pub fn release_tiles(&mut self) {
        self.push(Code::VEX_Tilerelease, First::Read, vec![]);
    }

    /// Makes a tile 0.
    pub fn zero_tile(&mut self, t: Tile) {
        self.push(Code::VEX_Tilezero_tmm, First::Read, vec![Operand::Tile(t)]);
    }

    /// Loads the rows of a tile, which are `pitch` bytes apart.
    pub fn load_tile(&mut self, t: Tile, m: Mem, pitch: R) {
        assert!(m.index.is_none(), "the index is the pitch");
        let rows = Mem::indexed(m.base, pitch, 1, m.disp);
        self.push(Code::VEX_Tileloadd_tmm_sibmem, First::Read, vec![Operand::Tile(t), Operand::Mem(rows)]);
    }

    /// Stores the rows of a tile, `pitch` bytes apart.
    pub fn store_tile(&mut self, m: Mem, pitch: R, t: Tile) {
        assert!(m.index.is_none(), "the index is the pitch");
        let rows = Mem::indexed(m.base, pitch, 1, m.disp);
        self.push(Code::VEX_Tilestored_sibmem_tmm, First::Read, vec![Operand::Mem(rows), Operand::Tile(t)]);
    }

    /// Adds to the i32 of a tile the products of a tile of `i8`, row by row, with one of `u8`, a row of which has
    /// units of four for each column.
    pub fn multiply_tiles(&mut self, sums: Tile, rows: Tile, columns: Tile) {
        let operands = [sums, rows, columns].map(Operand::Tile).to_vec();
        self.push(Code::VEX_Tdpbsud_tmm_tmm_tmm, First::Read, operands);
    }

    // Control flow.

    /// A label for [`bind`](Asm::bind).
    pub fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// Puts a label here.
    pub fn bind(&mut self, l: Label) {
        self.ins.push(Ins::Bind(l));
    }

    /// Goes to a label.
    pub fn jump(&mut self, l: Label) {
        self.ins.push(Ins::Jump(None, l));
    }

    /// Goes to a label if the last comparison was so.
    pub fn jump_if(&mut self, c: Cond, l: Label) {
        self.ins.push(Ins::Jump(Some(c), l));
    }

    /// Runs the body with `index` = `index`, `index + step`, … while `index + step <= end`.
    pub fn each(&mut self, index: R, end: R, step: i64, body: impl FnOnce(&mut Asm)) {
        let (head, exit) = (self.label(), self.label());
        let last = self.lea(Mem::at(end, -step));
        self.compare(index, last);
        self.jump_if(Cond::Gt, exit);
        self.bind(head);
        body(self);
        self.add_imm(index, step);
        self.compare(index, last);
        self.jump_if(Cond::Le, head);
        self.bind(exit);
    }

    /// Takes `by` off a count, and goes to `head` while something is left.
    pub fn count_down(&mut self, count: R, by: i64, head: Label) {
        self.add_imm(count, -by);
        self.compare_imm(count, 0);
        self.jump_if(Cond::Gt, head);
    }

    /// Runs the body `count` times, at least once; `count` is 0 behind.
    pub fn repeat(&mut self, count: R, body: impl FnOnce(&mut Asm)) {
        let head = self.label();
        self.bind(head);
        body(self);
        self.count_down(count, 1, head);
    }

    /// Runs `step` `count` times: `unroll` at a time, each with its number in the round, then one by one. `advance` moves
    /// what steps refer to by some steps; `count` is 0 behind. If `whole`, counts are known to be multiples of `unroll`.
    pub fn unrolled(&mut self, count: R, unroll: i64, whole: bool, step: impl Fn(&mut Asm, i64), advance: impl Fn(&mut Asm, i64)) {
        let (head, tail, exit) = (self.label(), self.label(), self.label());
        self.compare_imm(count, unroll);
        self.jump_if(Cond::Lt, tail);
        self.bind(head);
        (0..unroll).for_each(|n| step(self, n));
        advance(self, unroll);
        self.add_imm(count, -unroll);
        self.compare_imm(count, unroll);
        self.jump_if(Cond::Ge, head);
        self.bind(tail);
        if !whole {
            self.compare_imm(count, 0);
            self.jump_if(Cond::Le, exit);
            let one = self.label();
            self.bind(one);
            step(self, 0);
            advance(self, 1);
            self.count_down(count, 1, one);
        }
        self.bind(exit);
    }

    // Vectors.

    fn vector(&mut self, op: Op, first: First, operands: &[Operand], imm: Option<u8>, mask: Option<(Reg, bool)>) {
        let widths = op.widths();
        let mut list: Vec<Operand> = vec![];
        for (i, o) in operands.iter().enumerate() {
            list.push(match *o {
                Operand::Reg(r, _) => Operand::Reg(r, widths[i]),
                other => other,
            });
        }
        list.extend(imm.map(Operand::Imm8));
        self.push_masked(op.code(self.isa), first, list, mask);
    }

    /// `op(x)`.
    pub fn unary(&mut self, op: Op, x: impl Into<Src>) -> V {
        let dst = self.v();
        self.vector(op, First::Write, &[reg(dst), src(x.into())], None, None);
        dst
    }

    /// `op(x, imm)`.
    pub fn unary_imm(&mut self, op: Op, x: impl Into<Src>, imm: u8) -> V {
        let dst = self.v();
        self.vector(op, First::Write, &[reg(dst), src(x.into())], Some(imm), None);
        dst
    }

    /// `op(x, y)`.
    pub fn binary(&mut self, op: Op, x: V, y: impl Into<Src>) -> V {
        let dst = self.v();
        self.binary_into(op, dst, x, y);
        dst
    }

    /// `dst = op(x, y)`.
    pub fn binary_into(&mut self, op: Op, dst: V, x: V, y: impl Into<Src>) {
        self.vector(op, First::Write, &[reg(dst), reg(x), src(y.into())], None, None);
    }

    /// `op(x, y, imm)`.
    pub fn binary_imm(&mut self, op: Op, x: V, y: impl Into<Src>, imm: u8) -> V {
        let dst = self.v();
        self.vector(op, First::Write, &[reg(dst), reg(x), src(y.into())], Some(imm), None);
        dst
    }

    /// Constants behind the code, one for each lane; of fewer than 16, the first.
    pub fn table(&mut self, lanes: [f32; 16]) -> Table {
        self.words(lanes.map(f32::to_bits))
    }

    /// Integers behind the code, one for each lane; of fewer than 16, the first.
    pub fn words(&mut self, bits: [u32; 16]) -> Table {
        let known = self.tables.iter().position(|t| *t == bits);
        Table(known.unwrap_or_else(|| {
            self.tables.push(bits);
            self.tables.len() - 1
        }))
    }

    /// `dst = op(dst, x, y)`: multiply-adds and dot products.
    pub fn update(&mut self, op: Op, dst: V, x: V, y: impl Into<Src>) {
        self.vector(op, First::Update, &[reg(dst), reg(x), src(y.into())], None, None);
    }

    /// EVEX: `x = x & mask ^ flipped`.
    pub fn mask_and_flip(&mut self, x: V, mask: V, flipped: impl Into<Src>) {
        // Of the bits of the three operands, 3 bits with the first highest, the numbers whose bit of the immediate is set.
        let operands = vec![reg(x), reg(mask), src(flipped.into()), Operand::Imm8(0b0110_1010)];
        self.push(Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8, First::Update, operands);
    }

    /// `x * y + z`.
    pub fn fma(&mut self, x: V, y: impl Into<Src>, z: impl Into<Src>) -> V {
        let dst = self.v();
        self.ins.push(Ins::Fma { dst: dst.0, x: x.0, y: src(y.into()), z: src(z.into()) });
        dst
    }

    /// A copy of a vector, or one from memory or a constant.
    pub fn vector_of(&mut self, x: impl Into<Src>) -> V {
        let dst = self.v();
        self.set(dst, x);
        dst
    }

    /// `dst = x`.
    pub fn set(&mut self, dst: V, x: impl Into<Src>) {
        match x.into() {
            Src::Reg(x) => self.ins.push(Ins::Move { dst: dst.0, src: x.0 }),
            Src::Splat(0) => self.zero_into(dst),
            Src::Splat(bits) => self.vector(Op::BroadcastMem, First::Write, &[reg(dst), Operand::Splat(bits)], None, None),
            x => self.vector(Op::Move, First::Write, &[reg(dst), src(x)], None, None),
        }
    }

    /// Makes a vector 0.
    pub fn zero_into(&mut self, dst: V) {
        self.vector(Op::Xor, First::Write, &[reg(dst), reg(dst), reg(dst)], None, None);
    }

    /// 32 bits of memory in every lane.
    pub fn broadcast_into(&mut self, dst: V, m: Mem) {
        self.vector(Op::BroadcastMem, First::Write, &[reg(dst), Operand::Mem(m)], None, None);
    }

    /// 32 bits of memory in every lane.
    pub fn broadcast(&mut self, m: Mem) -> V {
        let dst = self.v();
        self.broadcast_into(dst, m);
        dst
    }

    /// The lowest lane in every lane.
    pub fn splat(&mut self, x: V) -> V {
        self.unary(Op::Broadcast, x)
    }

    /// The low 32 bits of a general register in every lane.
    pub fn splat_word(&mut self, r: R) -> V {
        let dst = self.v();
        self.vector(Op::FromWord, First::Write, &[reg(dst), Operand::Reg(r.0, Width::Word)], None, None);
        self.splat(dst)
    }

    /// A number as an f32 in the lowest lane.
    pub fn float_of(&mut self, r: R) -> V {
        let dst = self.vector_of(0);
        let code = if self.isa.evex() { Code::EVEX_Vcvtsi2ss_xmm_xmm_rm64_er } else { Code::VEX_Vcvtsi2ss_xmm_xmm_rm64 };
        let lowest = Operand::Reg(dst.0, Width::Xmm);
        self.push(code, First::Update, vec![lowest, lowest, long(r)]);
        dst
    }

    /// The lowest lane, zero-extended.
    pub fn to_word(&mut self, x: V) -> R {
        let dst = self.r();
        self.vector(Op::ToWord, First::Write, &[Operand::Reg(dst.0, Width::Word), reg(x)], None, None);
        dst
    }

    /// Stores with an operation that has memory as its first operand.
    pub fn store_by(&mut self, op: Op, m: Mem, x: V) {
        self.vector(op, First::Read, &[Operand::Mem(m), reg(x)], None, None);
    }

    /// Stores a vector.
    pub fn store_vector(&mut self, m: Mem, x: V) {
        self.store_by(Op::Store, m, x);
    }

    /// Stores the lanes of a mask.
    pub fn store_masked(&mut self, m: Mem, x: V, mask: M) {
        if self.isa.evex() {
            self.vector(Op::Store, First::Read, &[Operand::Mem(m), reg(x)], None, Some((mask.0, false)));
        } else {
            let operands = vec![Operand::Mem(m), Operand::Reg(mask.0, Width::Full), Operand::Reg(x.0, Width::Full)];
            self.push(Code::VEX_Vmaskmovps_m256_ymm_ymm, First::Read, operands);
        }
    }

    /// Loads the lanes of a mask; the others are 0 and their memory is not touched.
    pub fn load_masked(&mut self, m: Mem, mask: M) -> V {
        let dst = self.v();
        if self.isa.evex() {
            self.vector(Op::Move, First::Write, &[reg(dst), Operand::Mem(m)], None, Some((mask.0, true)));
        } else {
            let operands = vec![reg(dst), Operand::Reg(mask.0, Width::Full), Operand::Mem(m)];
            self.push(Code::VEX_Vmaskmovps_ymm_ymm_m256, First::Write, operands);
        }
        dst
    }

    /// The mask of the first `count` lanes; `count` is from 0 to the number of lanes.
    pub fn first_lanes(&mut self, count: R) -> M {
        let m = self.m();
        if self.isa.evex() {
            // (1 << count) - 1 by bzhi.
            let (ones, bits) = (self.imm(0xffff), self.r());
            let operands = vec![Operand::Reg(bits.0, Width::Word), Operand::Reg(ones.0, Width::Word), Operand::Reg(count.0, Width::Word)];
            self.push(Code::VEX_Bzhi_r32_rm32_r32, First::Write, operands);
            self.push(Code::VEX_Kmovw_kr_r32, First::Write, vec![Operand::Reg(m.0, Width::Mask), Operand::Reg(bits.0, Width::Word)]);
        } else {
            // A window into eight ones and eight zeros on the stack.
            let area = self.scratch(64);
            let (ones, zeros) = (self.vector_of(-1), self.vector_of(0));
            self.store_vector(Mem::at(area, 0), ones);
            self.store_vector(Mem::at(area, 32), zeros);
            let back = self.times_imm(count, -4);
            let window = Mem::indexed(area, back, 1, 32);
            self.push(Code::VEX_Vmovups_ymm_ymmm256, First::Write, vec![Operand::Reg(m.0, Width::Full), Operand::Mem(window)]);
        }
        m
    }

    /// Lanes where a comparison of f32 holds; the predicate is that of `vcmpps`.
    pub fn compare_ps(&mut self, predicate: u8, x: V, y: impl Into<Src>) -> M {
        let m = self.m();
        self.vector(Op::CmpPs, First::Write, &[Operand::Reg(m.0, Width::Mask), reg(x), src(y.into())], Some(predicate), None);
        m
    }

    /// Lanes that are in both masks.
    pub fn both(&mut self, x: M, y: M) -> M {
        let m = self.m();
        let code = if self.isa.evex() { Code::VEX_Kandw_kr_kr_kr } else { Code::VEX_Vpand_ymm_ymm_ymmm256 };
        let operand = |m: M| Operand::Reg(m.0, Width::Mask);
        self.push(code, First::Write, vec![operand(m), operand(x), operand(y)]);
        m
    }

    /// The lanes of a mask as bits, the first lane lowest.
    pub fn lane_bits(&mut self, m: M) -> R {
        let dst = self.r();
        let (code, width) =
            if self.isa.evex() { (Code::VEX_Kmovw_r32_kr, Width::Mask) } else { (Code::VEX_Vmovmskps_r32_ymm, Width::Full) };
        self.push(code, First::Write, vec![Operand::Reg(dst.0, Width::Word), Operand::Reg(m.0, width)]);
        dst
    }

    /// `mask ? x : y` by lane.
    pub fn select(&mut self, mask: M, x: V, y: V) -> V {
        let dst = self.v();
        if self.isa.evex() {
            let operands = vec![reg(dst), reg(y), reg(x)];
            self.push_masked(Code::EVEX_Vblendmps_zmm_k1z_zmm_zmmm512b32, First::Write, operands, Some((mask.0, false)));
        } else {
            let operands = vec![reg(dst), reg(y), reg(x), Operand::Reg(mask.0, Width::Full)];
            self.push(Code::VEX_Vblendvps_ymm_ymm_ymmm256_ymm, First::Write, operands);
        }
        dst
    }

    /// Combines the halves of a vector: the result's low 128 bits hold, for 128-bit pieces `p`, all `p` combined.
    pub fn fold_pieces(&mut self, x: V, mut op: impl FnMut(&mut Asm, V, V) -> V) -> V {
        let mut x = x;
        if self.isa.evex() {
            let high = self.extract(Code::EVEX_Vextractf32x8_ymmm256_k1z_zmm_imm8, x, Width::Half);
            x = op(self, x, high);
        }
        let code = if self.isa.evex() { Code::EVEX_Vextractf32x4_xmmm128_k1z_ymm_imm8 } else { Code::VEX_Vextractf128_xmmm128_ymm_imm8 };
        let dst = self.v();
        let from = if self.isa.evex() { Width::Half } else { Width::Full };
        self.push(code, First::Write, vec![Operand::Reg(dst.0, Width::Xmm), Operand::Reg(x.0, from), Operand::Imm8(1)]);
        op(self, x, dst)
    }

    fn extract(&mut self, code: Code, x: V, width: Width) -> V {
        let dst = self.v();
        self.push(code, First::Write, vec![Operand::Reg(dst.0, width), Operand::Reg(x.0, Width::Full), Operand::Imm8(1)]);
        dst
    }

    /// All lanes combined by an operation, in every lane of the lowest 128 bits: halves of halves, so the
    /// order depends on the number of lanes alone.
    pub fn across(&mut self, x: V, mut op: impl FnMut(&mut Asm, V, V) -> V) -> V {
        let x = self.fold_pieces(x, &mut op);
        let swapped = self.unary_imm(Op::ShufD, x, 0b01_00_11_10);
        let x = op(self, x, swapped);
        let swapped = self.unary_imm(Op::ShufD, x, 0b10_11_00_01);
        op(self, x, swapped)
    }

    /// Stores the low byte of every 32-bit lane, or of the first ones that are in a mask, contiguously; lanes must be in the range
    /// of `i8`.
    pub fn store_bytes(&mut self, m: Mem, x: V, mask: Option<M>) {
        if self.isa.evex() {
            let operands = vec![Operand::Mem(m), Operand::Reg(x.0, Width::Full)];
            let mask = mask.map(|m| (m.0, false));
            self.push_masked(Code::EVEX_Vpmovdb_xmmm128_k1z_zmm, First::Read, operands, mask);
        } else {
            let high = self.extract(Code::VEX_Vextractf128_xmmm128_ymm_imm8, x, Width::Xmm);
            let words = self.v();
            let xmm = |v: V| Operand::Reg(v.0, Width::Xmm);
            self.push(Code::VEX_Vpackssdw_xmm_xmm_xmmm128, First::Write, vec![xmm(words), xmm(x), xmm(high)]);
            let bytes = self.v();
            self.push(Code::VEX_Vpacksswb_xmm_xmm_xmmm128, First::Write, vec![xmm(bytes), xmm(words), xmm(words)]);
            self.store_eight_bytes(m, bytes, mask);
        }
    }

    /// Without EVEX: stores the lowest eight bytes, or those of the first lanes that are in a mask.
    fn store_eight_bytes(&mut self, m: Mem, bytes: V, mask: Option<M>) {
        let Some(mask) = mask else {
            return self.push(Code::VEX_Vmovq_xmmm64_xmm, First::Read, vec![Operand::Mem(m), Operand::Reg(bytes.0, Width::Xmm)]);
        };
        let (bits, done) = (self.lane_bits(mask), self.label());
        for n in 0..8 {
            self.compare_imm(bits, 1 << n);
            self.jump_if(Cond::Lt, done);
            let operands = vec![Operand::Mem(m.plus(n)), Operand::Reg(bytes.0, Width::Xmm), Operand::Imm8(n as u8)];
            self.push(Code::VEX_Vpextrb_r32m8_xmm_imm8, First::Read, operands);
        }
        self.bind(done);
    }

    /// Stores the low byte of every lane, or of the first ones that are in a mask, contiguously; or, without EVEX, the low bytes of
    /// all as words.
    pub fn store_low_bytes(&mut self, m: Mem, x: V, mask: Option<M>, words: bool) {
        if self.isa.evex() {
            assert!(!words, "words are for instruction sets without VNNI");
            return self.store_bytes(m, x, mask);
        }
        let x = self.binary(Op::And, x, 0xff);
        let high = self.extract(Code::VEX_Vextractf128_xmmm128_ymm_imm8, x, Width::Xmm);
        let packed = self.v();
        let xmm = |v: V| Operand::Reg(v.0, Width::Xmm);
        self.push(Code::VEX_Vpackusdw_xmm_xmm_xmmm128, First::Write, vec![xmm(packed), xmm(x), xmm(high)]);
        if words {
            return self.store_by(Op::StoreXmm, m, packed);
        }
        let bytes = self.v();
        self.push(Code::VEX_Vpackuswb_xmm_xmm_xmmm128, First::Write, vec![xmm(bytes), xmm(packed), xmm(packed)]);
        self.store_eight_bytes(m, bytes, mask);
    }

    /// Without EVEX: stores the low bytes of the lanes of four vectors, one behind the other.
    pub fn store_low_bytes_of_four(&mut self, m: Mem, x: [V; 4]) {
        let x = x.map(|x| self.binary(Op::And, x, 0xff));
        let (low, high) = (self.binary(Op::NarrowD, x[0], x[1]), self.binary(Op::NarrowD, x[2], x[3]));
        let bytes = self.binary(Op::NarrowUnsignedW, low, high);
        // Narrowing leaves in every 128 bits four bytes of each of four vectors.
        let order = self.words(std::array::from_fn(|i| (i % 2 * 4 + i / 2 % 4) as u32));
        let order = self.vector_of(order);
        let bytes = self.binary(Op::PermPs, order, bytes);
        self.store_vector(m, bytes);
    }

    /// Without EVEX: the i32 sums of pairs of neighbouring lanes, those of `x` first.
    pub fn sums_of_pairs(&mut self, x: V, y: V) -> V {
        let (sums, dst) = (self.v(), self.v());
        self.push(Code::VEX_Vphaddd_ymm_ymm_ymmm256, First::Write, vec![reg(sums), reg(x), reg(y)]);
        // Every 128 bits hold two sums of `x` and two of `y`.
        self.push(Code::VEX_Vpermq_ymm_ymmm256_imm8, First::Write, vec![reg(dst), reg(sums), Operand::Imm8(0b11_01_10_00)]);
        dst
    }

    /// Stores the low byte of the lowest lane.
    pub fn store_byte(&mut self, m: Mem, x: V) {
        let code = if self.isa.evex() { Code::EVEX_Vpextrb_r32m8_xmm_imm8 } else { Code::VEX_Vpextrb_r32m8_xmm_imm8 };
        self.push(code, First::Read, vec![Operand::Mem(m), Operand::Reg(x.0, Width::Xmm), Operand::Imm8(0)]);
    }

    /// Stores the `piece`-th 128 bits of a vector.
    pub fn store_piece(&mut self, m: Mem, x: V, piece: u8) {
        let code = if self.isa.evex() { Code::EVEX_Vextractf32x4_xmmm128_k1z_zmm_imm8 } else { Code::VEX_Vextractf128_xmmm128_ymm_imm8 };
        if piece == 0 {
            self.store_by(Op::StoreXmm, m, x);
        } else {
            self.push(code, First::Read, vec![Operand::Mem(m), Operand::Reg(x.0, Width::Full), Operand::Imm8(piece)]);
        }
    }

    /// The low words of all lanes, together in half a vector; without EVEX lanes must be in the range of `u16`.
    pub fn low_words(&mut self, x: V) -> V {
        let words = self.v();
        if self.isa.evex() {
            self.push(Code::EVEX_Vpmovdw_ymmm256_k1z_zmm, First::Write, vec![Operand::Reg(words.0, Width::Half), reg(x)]);
        } else {
            let high = self.extract(Code::VEX_Vextractf128_xmmm128_ymm_imm8, x, Width::Xmm);
            let xmm = |v: V| Operand::Reg(v.0, Width::Xmm);
            self.push(Code::VEX_Vpackusdw_xmm_xmm_xmmm128, First::Write, vec![xmm(words), xmm(x), xmm(high)]);
        }
        words
    }

    /// Half a vector of the words whose lanes are in a mask, the first so many; the others are 0 and their memory is not touched.
    pub fn load_words(&mut self, m: Mem, mask: M) -> V {
        let words = self.v();
        if self.isa.evex() {
            self.ins.push(Ins::Code {
                code: Code::EVEX_Vmovdqu16_ymm_k1z_ymmm256,
                operands: vec![Operand::Reg(words.0, Width::Half), Operand::Mem(m)],
                first: First::Write,
                mask: Some((mask.0, true)),
            });
            return words;
        }
        self.zero_into(words);
        let xmm = Operand::Reg(words.0, Width::Xmm);
        self.first_lanes_of(mask, |a, lane| {
            let place = Operand::Mem(m.plus(2 * lane));
            a.push(Code::VEX_Vpinsrw_xmm_xmm_r32m16_imm8, First::Update, vec![xmm, xmm, place, Operand::Imm8(lane as u8)]);
        });
        words
    }

    /// Stores the words of half a vector whose lanes are in a mask, the first so many.
    pub fn store_words(&mut self, m: Mem, words: V, mask: M) {
        if self.isa.evex() {
            self.ins.push(Ins::Code {
                code: Code::EVEX_Vmovdqu16_ymmm256_k1z_ymm,
                operands: vec![Operand::Mem(m), Operand::Reg(words.0, Width::Half)],
                first: First::Read,
                mask: Some((mask.0, false)),
            });
            return;
        }
        self.first_lanes_of(mask, |a, lane| {
            let operands = vec![Operand::Mem(m.plus(2 * lane)), Operand::Reg(words.0, Width::Xmm), Operand::Imm8(lane as u8)];
            a.push(Code::VEX_Vpextrw_r32m16_xmm_imm8, First::Read, operands);
        });
    }

    /// Stores the lowest word of a vector.
    pub fn store_lowest_word(&mut self, m: Mem, x: V) {
        let code = if self.isa.evex() { Code::EVEX_Vpextrw_r32m16_xmm_imm8 } else { Code::VEX_Vpextrw_r32m16_xmm_imm8 };
        self.push(code, First::Read, vec![Operand::Mem(m), Operand::Reg(x.0, Width::Xmm), Operand::Imm8(0)]);
    }

    /// Without EVEX: emits the body for the lanes of a mask, the first so many, one after the other.
    fn first_lanes_of(&mut self, mask: M, mut body: impl FnMut(&mut Asm, i64)) {
        let (bits, done) = (self.lane_bits(mask), self.label());
        for lane in 0..self.isa.lanes() {
            self.compare_imm(bits, 1 << lane);
            self.jump_if(Cond::Lt, done);
            body(self, lane);
        }
        self.bind(done);
    }

    /// EVEX: the bytes of a mask's lanes, widened by `op`; other lanes are 0 and their memory is not touched. Bytes are
    /// loaded by an instruction of their own, since not every emulator heeds the mask of one that converts.
    pub fn widen_masked(&mut self, op: Op, m: Mem, mask: M) -> V {
        let bytes = self.v();
        let operands = vec![Operand::Reg(bytes.0, Width::Xmm), Operand::Mem(m)];
        self.push_masked(Code::EVEX_Vmovdqu8_xmm_k1z_xmmm128, First::Write, operands, Some((mask.0, true)));
        self.unary(op, bytes)
    }
}

fn long(r: R) -> Operand {
    Operand::Reg(r.0, Width::Long)
}

fn reg(v: V) -> Operand {
    Operand::Reg(v.0, Width::Full)
}

fn src(s: Src) -> Operand {
    match s {
        Src::Reg(v) => reg(v),
        Src::Mem(m) => Operand::Mem(m),
        Src::Splat(bits) => Operand::Splat(bits),
        Src::Table(t) => Operand::Table(t),
        Src::Local(l) => Operand::Local(l),
    }
}
