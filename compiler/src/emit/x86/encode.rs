//! From instructions over virtual registers to bytes: places instead of registers, values of the frame
//! brought to registers and back, the frame itself, and constants behind the code.

use super::alloc::{self, Place, Places};
use super::asm::{Asm, Class, Cond, First, Ins, Label, Mem, Operand, Reg};
use super::isa::{Isa, Op, Width};
use crate::emit::{FRAME_BYTES, clif};
use iced_x86::{Code, Encoder, IcedError, Instruction, OpKind, Register};
use std::collections::BTreeMap;

/// The distance between touched places of a frame: that of the smallest pages less what alignment and a call take.
const PROBE: i64 = 4096 - 128;

/// General registers for values of the frame: `rax`, `rcx`, `rdx`.
const SPARE: [usize; 3] = [0, 1, 2];

/// Registers that a function gives back as it found them, System V.
const SAVED: [usize; 6] = [3, 5, 12, 13, 14, 15];

/// An instruction with registers, or a label before the next one.
enum Item {
    Ins(Instruction),
    Bind(Label),
    Jump(Option<Cond>, Label),
}

/// What is in the pool: a number in every lane, or a table by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Constant {
    Splat(u32),
    Table(usize),
}

struct Encode<'a> {
    a: &'a Asm,
    places: Places,
    items: Vec<Item>,
    /// Offsets in the pool by contents.
    pool: BTreeMap<(Constant, i64), i64>,
    pool_bytes: i64,
}

/// Marks displacements into the pool until its place is known.
const POOL: u64 = 1 << 40;

impl Asm {
    /// Ends the function and encodes it.
    ///
    /// # Errors
    /// When the encoder refuses an instruction: a bug of ours.
    pub fn finish(self) -> Result<clif::code::Code, IcedError> {
        let places = alloc::allocate(&self);
        let mut e = Encode { a: &self, places, items: vec![], pool: BTreeMap::new(), pool_bytes: 0 };
        let stack = e.function();
        Ok(clif::code::Code { bytes: e.assemble()?, align: 64, stack })
    }
}

impl Encode<'_> {
    /// Encodes the function. Returns the bytes of the stack that a call takes.
    fn function(&mut self) -> u64 {
        let a = self.a;
        let saved: Vec<usize> = SAVED.into_iter().filter(|n| self.uses(*n)).collect();
        for &n in &saved {
            self.emit(Code::Push_r64, &[Fixed::Reg(Width::Long.register(a.isa, n))]);
        }
        let slots = a.scratch;
        let words = slots + 64 * self.places.slots as i64;
        let frame = (words + 32 + 63) / 64 * 64;
        debug_assert!(frame <= FRAME_BYTES as i64, "a kernel takes {frame} bytes of the stack");
        let rsp = Fixed::Reg(Register::RSP);
        let word = |n: i64| Fixed::Mem { base: Register::RSP, index: None, disp: words + 8 * n };
        self.emit(Code::Mov_r64_rm64, &[Fixed::Reg(Register::RAX), rsp]);
        // No page is left out on the way down: where the stack ends, its guard page is touched.
        for _ in 0..frame / PROBE {
            let top = Fixed::Mem { base: Register::RSP, index: None, disp: 0 };
            self.emit(Code::Sub_rm64_imm32, &[rsp, Fixed::Imm32(PROBE as i32)]);
            self.emit(Code::Test_rm64_r64, &[top, Fixed::Reg(Register::RAX)]);
        }
        self.emit(Code::Sub_rm64_imm32, &[rsp, Fixed::Imm32((frame % PROBE) as i32)]);
        self.emit(Code::And_rm64_imm32, &[rsp, Fixed::Imm32(-64)]);
        self.emit(Code::Mov_rm64_r64, &[word(3), Fixed::Reg(Register::RAX)]);
        for (i, r) in [Register::RDI, Register::RSI, Register::RDX].into_iter().enumerate() {
            self.emit(Code::Mov_rm64_r64, &[word(i as i64), Fixed::Reg(r)]);
        }
        for (i, p) in a.params.into_iter().enumerate() {
            match self.places.of[p.0 as usize].expect("parameters have places") {
                Place::Register(n) => {
                    self.emit(Code::Mov_r64_rm64, &[Fixed::Reg(Width::Long.register(a.isa, n)), word(i as i64)]);
                }
                Place::Slot(s) => {
                    self.emit(Code::Mov_r64_rm64, &[Fixed::Reg(Register::RAX), word(i as i64)]);
                    let slot = self.slot(s);
                    self.emit(Code::Mov_rm64_r64, &[slot, Fixed::Reg(Register::RAX)]);
                }
            }
        }
        for ins in &a.ins {
            self.instruction(ins);
        }
        self.emit(Code::Mov_r64_rm64, &[rsp, word(3)]);
        for &n in saved.iter().rev() {
            self.emit(Code::Pop_r64, &[Fixed::Reg(Width::Long.register(a.isa, n))]);
        }
        self.emit(Code::VEX_Vzeroupper, &[]);
        self.emit(Code::Retnq, &[]);
        // The return address, what is saved, the frame, and the most that its alignment takes.
        (8 + 8 * saved.len() as i64 + frame + 63) as u64
    }

    fn uses(&self, n: usize) -> bool {
        self.places.of.iter().zip(&self.a.classes).any(|(p, c)| *c == Class::General && *p == Some(Place::Register(n)))
    }

    fn slot(&self, s: usize) -> Fixed {
        Fixed::Mem { base: Register::RSP, index: None, disp: self.a.scratch + 64 * s as i64 }
    }

    fn emit(&mut self, code: Code, operands: &[Fixed]) {
        self.items.push(Item::Ins(instruction(code, operands, None)));
    }

    /// Brings values of the frame to spare registers.
    fn instruction(&mut self, ins: &Ins) {
        match ins {
            Ins::Bind(l) => self.items.push(Item::Bind(*l)),
            Ins::Jump(c, l) => self.items.push(Item::Jump(*c, *l)),
            Ins::Scratch { dst, offset } => {
                let from = Fixed::Mem { base: Register::RSP, index: None, disp: *offset };
                let (to, back) = self.result(*dst, Width::Long);
                self.emit(Code::Lea_r64_m, &[to, from]);
                self.give_back(*dst, back);
            }
            Ins::Move { dst, src } => self.moved(*dst, *src),
            Ins::Divide { quotient, remainder, x, by } => {
                let mut spare = Spare { general: 1, vector: 0 };
                let by = self.value(*by, Width::Long, &mut spare);
                let x = self.place(*x, Width::Long);
                self.emit(Code::Mov_r64_rm64, &[Fixed::Reg(Register::RAX), x]);
                self.emit(Code::Xor_r32_rm32, &[Fixed::Reg(Register::EDX), Fixed::Reg(Register::EDX)]);
                self.emit(Code::Div_rm64, &[by]);
                for (to, from) in [(*quotient, Register::RAX), (*remainder, Register::RDX)] {
                    if self.places.of[to.0 as usize].is_some() {
                        let to = self.place(to, Width::Long);
                        self.emit(Code::Mov_rm64_r64, &[to, Fixed::Reg(from)]);
                    }
                }
            }
            Ins::Fma { dst, x, y, z } => self.fma(*dst, *x, y, z),
            Ins::Code { code, operands, first, mask } => {
                let mut spare = Spare::default();
                let mut fixed = vec![];
                let mut result = None;
                for (i, o) in operands.iter().enumerate() {
                    let f = match (i, o, first) {
                        (0, Operand::Reg(r, w), First::Write) => {
                            let (f, back) = self.result(*r, *w);
                            result = Some((*r, back));
                            f
                        }
                        _ => self.operand(*code, o, &mut spare),
                    };
                    if i == 0
                        && *first == First::Update
                        && let Operand::Reg(r, _) = o
                    {
                        result = Some((*r, self.in_slot(*r).is_some()));
                    }
                    fixed.push(f);
                }
                // A 0 by a register combined with itself needs no value.
                if *first == First::Write && operands.len() == 3 && operands.iter().all(|o| *o == operands[0]) {
                    fixed = vec![fixed[0]; 3];
                }
                let mask = mask.map(|(m, zeroing)| match self.places.of[m.0 as usize] {
                    Some(Place::Register(n)) => (Register::K0 + n as u32, zeroing),
                    _ => unreachable!("few masks live at once"),
                });
                self.items.push(Item::Ins(instruction(*code, &fixed, mask)));
                if let Some((r, back)) = result {
                    self.give_back(r, back);
                }
            }
        }
    }

    fn in_slot(&self, r: Reg) -> Option<usize> {
        match self.places.of[r.0 as usize] {
            Some(Place::Slot(s)) => Some(s),
            _ => None,
        }
    }

    fn class(&self, r: Reg) -> Class {
        self.a.classes[r.0 as usize]
    }

    /// The first spare vector register.
    fn spare_vector(&self) -> usize {
        self.a.isa.registers() - self.places.reserved
    }

    /// A register or its slot.
    fn place(&self, r: Reg, w: Width) -> Fixed {
        match self.places.of[r.0 as usize] {
            Some(Place::Register(n)) => Fixed::Reg(w.register(self.a.isa, n)),
            Some(Place::Slot(s)) => self.slot(s),
            None => unreachable!("values are written before they are read"),
        }
    }

    /// The register that a value is read from; loaded into the next spare one where it is in the frame.
    fn value(&mut self, r: Reg, w: Width, spare: &mut Spare) -> Fixed {
        let Some(s) = self.in_slot(r) else { return self.place(r, w) };
        let slot = self.slot(s);
        match self.class(r) {
            Class::General => {
                let n = SPARE[spare.general];
                spare.general += 1;
                self.emit(Code::Mov_r64_rm64, &[Fixed::Reg(Width::Long.register(self.a.isa, n)), slot]);
                Fixed::Reg(w.register(self.a.isa, n))
            }
            _ => {
                let n = self.spare_vector() + spare.vector;
                spare.vector += 1;
                self.emit(Op::Move.code(self.a.isa), &[Fixed::Reg(Width::Full.register(self.a.isa, n)), slot]);
                Fixed::Reg(w.register(self.a.isa, n))
            }
        }
    }

    /// The register that a result is written to, and whether it has to be stored to the frame.
    fn result(&self, r: Reg, w: Width) -> (Fixed, bool) {
        match self.places.of[r.0 as usize] {
            Some(Place::Register(n)) => (Fixed::Reg(w.register(self.a.isa, n)), false),
            _ => {
                let n = if self.class(r) == Class::General { SPARE[0] } else { self.spare_vector() };
                (Fixed::Reg(w.register(self.a.isa, n)), true)
            }
        }
    }

    fn give_back(&mut self, r: Reg, back: bool) {
        let Some(s) = self.in_slot(r).filter(|_| back) else { return };
        let slot = self.slot(s);
        match self.class(r) {
            Class::General => self.emit(Code::Mov_rm64_r64, &[slot, Fixed::Reg(Width::Long.register(self.a.isa, SPARE[0]))]),
            _ => {
                let n = self.spare_vector();
                self.emit(Op::Store.code(self.a.isa), &[slot, Fixed::Reg(Width::Full.register(self.a.isa, n))]);
            }
        }
    }

    fn operand(&mut self, code: Code, o: &Operand, spare: &mut Spare) -> Fixed {
        match *o {
            Operand::Reg(r, w) => self.value(r, w, spare),
            Operand::Mem(Mem { base, index, disp }) => {
                let mut register = |r: Reg, spare: &mut Spare| match self.value(r, Width::Long, spare) {
                    Fixed::Reg(r) => r,
                    _ => unreachable!("loaded"),
                };
                let base = register(base.0, spare);
                let index = index.map(|(r, scale)| (register(r.0, spare), scale));
                Fixed::Mem { base, index, disp }
            }
            Operand::Tile(t) => Fixed::Reg(Register::TMM0 + u32::from(t.0)),
            Operand::Splat(bits) => self.splat(code, bits),
            Operand::Local(l) => Fixed::Mem { base: Register::RSP, index: None, disp: l.0 },
            Operand::Table(t) => self.constant(Constant::Table(t.0), 64, false),
            Operand::Imm8(n) => Fixed::Imm8(n),
            Operand::Imm32(n) => Fixed::Imm32(n),
            Operand::Imm64(n) => Fixed::Imm64(n),
        }
    }

    /// A constant behind the code: one lane where the instruction repeats it, else a vector.
    fn splat(&mut self, code: Code, bits: u32) -> Fixed {
        let isa = self.a.isa;
        let one = code == Op::BroadcastMem.code(isa);
        let broadcast = isa.evex() && !one && repeats_lanes(code);
        self.constant(Constant::Splat(bits), if one || broadcast { 4 } else { isa.bytes() }, broadcast)
    }

    fn constant(&mut self, constant: Constant, bytes: i64, broadcast: bool) -> Fixed {
        let next = (self.pool_bytes + bytes - 1) / bytes * bytes;
        let offset = *self.pool.entry((constant, bytes)).or_insert(next);
        if offset == next {
            self.pool_bytes = next + bytes;
        }
        Fixed::Pool { offset, broadcast }
    }

    fn moved(&mut self, dst: Reg, src: Reg) {
        let isa = self.a.isa;
        let (w, load, store) = match self.class(dst) {
            Class::General => (Width::Long, Code::Mov_r64_rm64, Code::Mov_rm64_r64),
            Class::Mask => (Width::Mask, Code::VEX_Kmovw_kr_km16, Code::VEX_Kmovw_m16_kr),
            Class::Vector => (Width::Full, Op::Move.code(isa), Op::Store.code(isa)),
        };
        let (to, from) = (self.place(dst, w), self.place(src, w));
        if to == from {
            return;
        }
        match (to, from) {
            (Fixed::Mem { .. }, Fixed::Mem { .. }) => {
                let x = self.value(src, w, &mut Spare::default());
                self.emit(store, &[to, x]);
            }
            (Fixed::Mem { .. }, _) => self.emit(store, &[to, from]),
            _ => self.emit(load, &[to, from]),
        }
    }

    fn fma(&mut self, dst: Reg, x: Reg, y: &Operand, z: &Operand) {
        let isa = self.a.isa;
        let code = |op: Op| op.code(isa);
        let (to, back) = self.result(dst, Width::Full);
        // The first spare register is that of a result in the frame.
        let mut spare = Spare { general: 0, vector: usize::from(back) };
        let x = self.value(x, Width::Full, &mut spare);
        let y = self.operand(code(Op::Fma231), y, &mut spare);
        let z = match z {
            Operand::Reg(r, _) if self.in_slot(*r).is_some() && back => self.value(*r, Width::Full, &mut Spare::default()),
            z => self.operand(code(Op::Fma231), z, &mut spare),
        };
        let (mov, is_reg) = (code(Op::Move), |f: Fixed| matches!(f, Fixed::Reg(_)));
        if !is_reg(z) {
            let other = if to == x {
                y
            } else if to == y {
                x
            } else {
                self.emit(mov, &[to, x]);
                y
            };
            self.emit(code(Op::Fma213), &[to, other, z]);
        } else if to == z {
            self.emit(code(Op::Fma231), &[to, x, y]);
        } else if to == x && is_reg(y) {
            self.emit(code(Op::Fma213), &[to, y, z]);
        } else if to == x {
            let code = if isa.evex() { Code::EVEX_Vfmadd132ps_zmm_k1z_zmm_zmmm512b32_er } else { Code::VEX_Vfmadd132ps_ymm_ymm_ymmm256 };
            self.emit(code, &[to, z, y]);
        } else if to == y {
            self.emit(code(Op::Fma213), &[to, x, z]);
        } else {
            self.emit(mov, &[to, z]);
            self.emit(code(Op::Fma231), &[to, x, y]);
        }
        self.give_back(dst, back);
    }

    /// Two rounds: lengths do not depend on where things are, so the first gives the places.
    fn assemble(self) -> Result<Vec<u8>, IcedError> {
        let mut labels: BTreeMap<Label, u64> = BTreeMap::new();
        let mut pool = POOL >> 20;
        let mut bytes = vec![];
        for _ in 0..2 {
            let mut encoder = Encoder::new(64);
            let mut at = 0u64;
            for item in &self.items {
                let i = match item {
                    Item::Bind(l) => {
                        labels.insert(*l, at);
                        continue;
                    }
                    Item::Jump(c, l) => {
                        let target = labels.get(l).copied().unwrap_or(at);
                        Instruction::with_branch(jump_code(*c), target)?
                    }
                    Item::Ins(i) => {
                        let mut i = *i;
                        if i.memory_base() == Register::RIP {
                            i.set_memory_displacement64(i.memory_displacement64() - POOL + pool);
                        }
                        i
                    }
                };
                at += encoder.encode(&i, at)? as u64;
            }
            bytes = encoder.take_buffer();
            pool = at.next_multiple_of(64);
        }
        if self.pool_bytes > 0 {
            bytes.resize(pool as usize + self.pool_bytes as usize, 0);
            for ((constant, len), offset) in self.pool {
                let begin = pool as usize + offset as usize;
                for (i, lane) in bytes[begin..begin + len as usize].chunks_exact_mut(4).enumerate() {
                    let bits = match constant {
                        Constant::Splat(bits) => bits,
                        Constant::Table(t) => self.a.tables[t][i],
                    };
                    lane.copy_from_slice(&bits.to_le_bytes());
                }
            }
        }
        Ok(bytes)
    }
}

/// Spare registers in use.
#[derive(Default)]
struct Spare {
    general: usize,
    vector: usize,
}

/// An operand with its registers.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fixed {
    Reg(Register),
    Mem { base: Register, index: Option<(Register, u32)>, disp: i64 },
    Pool { offset: i64, broadcast: bool },
    Imm8(u8),
    Imm32(i32),
    Imm64(i64),
}

/// Whether the EVEX form repeats one lane of memory.
fn repeats_lanes(code: Code) -> bool {
    use Op::{AddSaturatedW, AddW, MaddUbs, MaddW, MaxB, MinW, Move, NarrowUnsignedW, NarrowW, ShrW};
    let no = [AddSaturatedW, AddW, MaddUbs, MaddW, MaxB, MinW, Move, NarrowUnsignedW, NarrowW, ShrW];
    !no.iter().any(|op| op.code(Isa::Avx512Vnni) == code)
}

fn jump_code(c: Option<Cond>) -> Code {
    match c {
        None => Code::Jmp_rel32_64,
        Some(Cond::Eq) => Code::Je_rel32_64,
        Some(Cond::Ne) => Code::Jne_rel32_64,
        Some(Cond::Lt) => Code::Jl_rel32_64,
        Some(Cond::Le) => Code::Jle_rel32_64,
        Some(Cond::Ge) => Code::Jge_rel32_64,
        Some(Cond::Gt) => Code::Jg_rel32_64,
    }
}

fn instruction(code: Code, operands: &[Fixed], mask: Option<(Register, bool)>) -> Instruction {
    let mut i = Instruction::new();
    i.set_code(code);
    for (n, o) in operands.iter().enumerate() {
        let n = n as u32;
        match *o {
            Fixed::Reg(r) => {
                i.set_op_kind(n, OpKind::Register);
                i.set_op_register(n, r);
            }
            Fixed::Mem { base, index, disp } => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(base);
                if let Some((r, scale)) = index {
                    i.set_memory_index(r);
                    i.set_memory_index_scale(scale);
                }
                i.set_memory_displ_size(u32::from(disp != 0));
                i.set_memory_displacement64(disp as u64);
            }
            Fixed::Pool { offset, broadcast } => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(Register::RIP);
                i.set_memory_displ_size(8);
                i.set_memory_displacement64(POOL + offset as u64);
                i.set_is_broadcast(broadcast);
            }
            Fixed::Imm8(x) => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(x);
            }
            Fixed::Imm32(x) => {
                i.set_op_kind(n, OpKind::Immediate32to64);
                i.set_immediate32to64(x.into());
            }
            Fixed::Imm64(x) => {
                i.set_op_kind(n, OpKind::Immediate64);
                i.set_immediate64(x as u64);
            }
        }
    }
    if let Some((k, zeroing)) = mask {
        i.set_op_mask(k);
        i.set_zeroing_masking(zeroing);
    }
    i
}
