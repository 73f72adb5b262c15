//! What a process has to ask its operating system for before code may use it.

/// Linux on x86-64: the number of the system call `arch_prctl`.
pub const ARCH_PRCTL: i32 = 158;

/// `arch_prctl`: asks that a component of the extended state may be used by all threads of the process
/// (`Documentation/arch/x86/xstate.rst` of the kernel).
pub const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;

/// The component of the extended state that holds the data of matrix tiles.
pub const XFEATURE_XTILEDATA: i32 = 18;

/// Whether this process may use the matrix tiles of AMX, with products of bytes: whether the CPU has them, the
/// kernel keeps them, and it says yes when it is asked, which this does.
pub fn matrix_tiles() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        linux::matrix_tiles()
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use super::{ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA};
    use std::arch::x86_64::{__cpuid_count, __get_cpuid_max, _xgetbv};

    pub fn matrix_tiles() -> bool {
        let state = (1 << 17) | (1 << 18);
        let amx = (1 << 24) | (1 << 25);
        // SAFETY: every x86-64 CPU has the instruction.
        #[allow(unsafe_code, unused_unsafe, reason = "asking the CPU")]
        let has = unsafe { __get_cpuid_max(0).0 >= 7 && __cpuid_count(7, 0).edx & amx == amx };
        // AMX comes with `xgetbv`, which the kernel allows where AVX is found.
        has && is_x86_feature_detected!("avx") && xcr0() & state == state && permission()
    }

    fn xcr0() -> u64 {
        #[target_feature(enable = "xsave")]
        #[allow(unsafe_code, reason = "an instruction that not every CPU has")]
        unsafe fn read() -> u64 {
            // SAFETY: register 0 exists wherever the instruction does.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: where AVX was found the operating system has enabled the instruction.
        #[allow(unsafe_code, reason = "the caller has asked the CPU")]
        unsafe {
            read()
        }
    }

    fn permission() -> bool {
        let result: i64;
        // SAFETY: the call takes two numbers, touches no memory of the process, and changes no register but those named.
        #[allow(unsafe_code, reason = "a system call that has no function in the C library")]
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") i64::from(ARCH_PRCTL) => result,
                in("rdi") i64::from(ARCH_REQ_XCOMP_PERM),
                in("rsi") i64::from(XFEATURE_XTILEDATA),
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_stays() {
        assert_eq!(matrix_tiles(), matrix_tiles());
        assert_eq!(std::thread::spawn(matrix_tiles).join().unwrap(), matrix_tiles());
    }
}
