//! Register numbers by linear scan (Poletto and Sarkar 1999).
//!
//! The life of a virtual register is one interval from its first write to its last use. A register that
//! lives when a loop begins and is used within lives to the end of the loop. Intervals get registers in
//! the order of their begins; where none is free, the register whose uses cost least, uses in loops
//! counting more, lives in the frame.

use super::asm::{Asm, Class, First, Ins, Label, Operand, Reg};
use super::isa::Isa;
use std::collections::BTreeMap;

/// Where a virtual register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the register of its class with this number.
    Register(usize),
    /// In the frame, in the slot with this number.
    Slot(usize),
}

/// Places of all virtual registers.
pub struct Places {
    /// By virtual register; `None` for those that are never written.
    pub of: Vec<Option<Place>>,
    /// Number of slots.
    pub slots: usize,
    /// Number of vector registers that are kept free for values that live in the frame.
    pub reserved: usize,
}

/// General registers that values get; `rax`, `rcx` and `rdx` are for division and for values in the frame, `rsp` is the stack's.
const GENERAL: [usize; 12] = [6, 7, 8, 9, 10, 11, 3, 5, 12, 13, 14, 15];

/// Vector registers that are kept for values in the frame, where there are any.
const RESERVED: usize = 3;

#[derive(Clone, Copy, Debug)]
struct Interval {
    reg: Reg,
    start: usize,
    end: usize,
    weight: f64,
    hint: Option<Reg>,
}

/// Finds places.
pub fn allocate(a: &Asm) -> Places {
    let intervals = intervals(a);
    let places = scan(a, &intervals, 0);
    let spilled = a.classes.iter().zip(&places.of).any(|(c, p)| *c == Class::Vector && matches!(p, Some(Place::Slot(_))));
    if spilled { scan(a, &intervals, RESERVED) } else { places }
}

/// The virtual registers that an instruction reads and writes.
pub fn touched(ins: &Ins, mut read: impl FnMut(Reg), mut write: impl FnMut(Reg)) {
    let operand = |o: &Operand, read: &mut dyn FnMut(Reg)| match o {
        Operand::Reg(r, _) => read(*r),
        Operand::Mem(m) => {
            read(m.base.0);
            if let Some((index, _)) = m.index {
                read(index.0);
            }
        }
        _ => {}
    };
    match ins {
        Ins::Code { operands, first, mask, .. } => {
            for (i, o) in operands.iter().enumerate() {
                match (i, o) {
                    (0, Operand::Reg(r, _)) => {
                        if *first != First::Write {
                            read(*r);
                        }
                        if *first != First::Read {
                            write(*r);
                        }
                    }
                    // A register combined with itself is a 0: not a use of what it held.
                    (_, Operand::Reg(..)) if *first == First::Write && operands.iter().all(|p| p == o) => {}
                    _ => operand(o, &mut read),
                }
            }
            if let Some((m, _)) = mask {
                read(*m);
            }
        }
        Ins::Fma { dst, x, y, z } => {
            read(*x);
            operand(y, &mut read);
            operand(z, &mut read);
            write(*dst);
        }
        Ins::Move { dst, src } => {
            read(*src);
            write(*dst);
        }
        Ins::Divide { quotient, remainder, x, by } => {
            read(*x);
            read(*by);
            write(*quotient);
            write(*remainder);
        }
        Ins::Scratch { dst, .. } => write(*dst),
        Ins::Bind(_) | Ins::Jump(..) => {}
    }
}

/// Lives, in the order of their begins. Reads of instruction `i` are at `2 * i + 2`, writes at `2 * i + 3`.
fn intervals(a: &Asm) -> Vec<Interval> {
    let mut bound: BTreeMap<Label, usize> = BTreeMap::new();
    let mut loops: Vec<(usize, usize)> = vec![];
    for (i, ins) in a.ins.iter().enumerate() {
        match ins {
            Ins::Bind(l) => {
                bound.insert(*l, i);
            }
            Ins::Jump(_, l) => loops.extend(bound.get(l).map(|&b| (2 * b + 2, 2 * i + 3))),
            _ => {}
        }
    }
    let mut lives: Vec<Option<Interval>> = vec![None; a.classes.len()];
    for r in a.params {
        lives[r.0 as usize] = Some(Interval { reg: r, start: 0, end: 0, weight: 0.0, hint: None });
    }
    for (i, ins) in a.ins.iter().enumerate() {
        let depth = loops.iter().filter(|(s, e)| (*s..=*e).contains(&(2 * i + 2))).count();
        let cost = 8f64.powi(depth as i32);
        let mut at = |r: Reg, position: usize| {
            let life = lives[r.0 as usize].get_or_insert(Interval { reg: r, start: position, end: position, weight: 0.0, hint: None });
            life.end = life.end.max(position);
            life.weight += cost;
        };
        let (mut reads, mut writes) = (vec![], vec![]);
        touched(ins, |r| reads.push(r), |r| writes.push(r));
        reads.iter().for_each(|&r| at(r, 2 * i + 2));
        // The second result of a division is written while its operands are still needed.
        writes.iter().for_each(|&r| at(r, 2 * i + 3));
        let hint = match ins {
            Ins::Move { dst, src } => Some((*dst, *src)),
            Ins::Fma { dst, z: Operand::Reg(z, _), .. } => Some((*dst, *z)),
            Ins::Fma { dst, x, .. } => Some((*dst, *x)),
            _ => None,
        };
        if let Some((dst, src)) = hint
            && let Some(life) = &mut lives[dst.0 as usize]
        {
            life.hint.get_or_insert(src);
        }
    }
    let mut lives: Vec<Interval> = lives.into_iter().flatten().collect();
    loop {
        let mut changed = false;
        for life in &mut lives {
            for &(s, e) in &loops {
                if life.start < s && (s..e).contains(&life.end) {
                    life.end = e;
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    lives.sort_by_key(|l| (l.start, l.reg));
    lives
}

fn scan(a: &Asm, lives: &[Interval], reserved: usize) -> Places {
    let pool = |class: Class, isa: Isa| -> Vec<usize> {
        match class {
            Class::Vector => (0..isa.registers() - reserved).collect(),
            Class::General => GENERAL.to_vec(),
            Class::Mask => (1..8).collect(),
        }
    };
    let class_of = |r: Reg| a.classes[r.0 as usize];
    let mut free: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    for class in [Class::Vector, Class::General, Class::Mask] {
        free.insert(class as u8, pool(class, a.isa));
    }
    let mut places = Places { of: vec![None; a.classes.len()], slots: 0, reserved };
    let mut active: Vec<Interval> = vec![];
    for life in lives {
        let class = class_of(life.reg);
        active.retain(|l| {
            let ended = l.end < life.start;
            if ended && let Some(Place::Register(n)) = places.of[l.reg.0 as usize] {
                free.get_mut(&(class_of(l.reg) as u8)).expect("every class").push(n);
            }
            !ended
        });
        let registers = free.get_mut(&(class as u8)).expect("every class");
        let hinted = life.hint.and_then(|h| match places.of[h.0 as usize] {
            Some(Place::Register(n)) => registers.iter().position(|&r| r == n),
            _ => None,
        });
        // The lowest number first keeps code short.
        let lowest = || registers.iter().enumerate().min_by_key(|(_, n)| rank(class, **n)).map(|(i, _)| i);
        if let Some(i) = hinted.or_else(lowest) {
            places.of[life.reg.0 as usize] = Some(Place::Register(registers.remove(i)));
            active.push(*life);
            continue;
        }
        let cost = |l: &Interval| l.weight / (l.end - l.start + 1) as f64;
        let cheapest = active
            .iter()
            .enumerate()
            .filter(|(_, l)| class_of(l.reg) == class)
            .min_by(|(_, x), (_, y)| cost(x).total_cmp(&cost(y)).then(x.reg.cmp(&y.reg)))
            .map(|(i, _)| i)
            .expect("registers that are not free are active");
        let slot = Place::Slot(places.slots);
        places.slots += 1;
        if cost(&active[cheapest]) < cost(life) {
            let victim = active.remove(cheapest);
            places.of[life.reg.0 as usize] = places.of[victim.reg.0 as usize];
            places.of[victim.reg.0 as usize] = Some(slot);
            active.push(*life);
        } else {
            places.of[life.reg.0 as usize] = Some(slot);
        }
    }
    places
}

fn rank(class: Class, n: usize) -> usize {
    match class {
        Class::General => GENERAL.iter().position(|&g| g == n).expect("from the pool"),
        _ => n,
    }
}
