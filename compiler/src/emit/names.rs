//! Names of models, inputs, outputs and dimensions as identifiers in generated C, C++ and Rust.
//!
//! An identifier that a language keeps for itself, or that may be a macro where the header is included, gets an `_`
//! behind it, or an `x` in front where it begins with underscores: behind it there may be another macro. Kept are
//!
//! - the keywords of C11 (N1570, 6.4.1) to C23 (N3096, 6.4.1);
//! - the keywords and alternative tokens of C++11 to C++23 (\[lex.key\], \[lex.digraph\]) and its identifiers with a special meaning
//!   (\[lex.name\]);
//! - the keywords of Rust 2015 to 2024, strict and reserved (The Rust Reference, "Keywords");
//! - the macros of the headers of C11 to C23, and the names that their chapters "Future library directions" keep for more
//!   (N1570, 7.31; N3096, 7.33), as far as they are no names of functions;
//! - the types of `<stddef.h>` and `<stdint.h>`, in terms of which members are declared;
//! - what C keeps for compilers: names that begin with two underscores, or one and a capital;
//! - `linux`, `unix` and `i386`, which compilers define in their default mode.

/// Keywords of C11 to C23 that do not begin with an underscore.
const C: &str = "alignas alignof auto bool break case char const constexpr continue default do double else enum extern false float \
    for goto if inline int long nullptr register restrict return short signed sizeof static static_assert struct switch \
    thread_local true typedef typeof typeof_unqual union unsigned void volatile while";

/// Keywords, alternative tokens and special identifiers of C++11 to C++23 that C does not have.
const CXX: &str = "and and_eq asm bitand bitor catch char16_t char32_t char8_t class co_await co_return co_yield compl concept \
    const_cast consteval constinit decltype delete dynamic_cast explicit export final friend import module mutable namespace new \
    noexcept not not_eq operator or or_eq override private protected public reinterpret_cast requires static_cast template this \
    throw try typeid typename using virtual wchar_t xor xor_eq";

/// Keywords of Rust 2015 to 2024, strict and reserved.
const RUST: &str = "Self abstract as async await become box crate dyn final fn gen impl in let loop macro match mod move mut \
    override priv pub ref self super trait type unsafe unsized use virtual where yield";

/// Macros of the headers of C11 to C23 that no family of [`is_macro`] has, by header; and what compilers define by themselves.
const MACROS: &str = "assert \
    CMPLX CMPLXF CMPLXL I complex imaginary \
    errno \
    HUGE_VAL HUGE_VALF HUGE_VALL HUGE_VAL_D32 HUGE_VAL_D64 HUGE_VAL_D128 INFINITY NAN DEC_INFINITY DEC_NAN math_errhandling \
    fpclassify isfinite isinf isnan isnormal signbit iscanonical issignaling issubnormal iszero iseqsig isgreater isgreaterequal \
    isless islessequal islessgreater isunordered \
    setjmp \
    va_arg va_copy va_end va_start \
    kill_dependency \
    NULL offsetof unreachable \
    BUFSIZ EOF FILENAME_MAX FOPEN_MAX L_tmpnam SEEK_CUR SEEK_END SEEK_SET TMP_MAX stderr stdin stdout \
    EXIT_FAILURE EXIT_SUCCESS MB_CUR_MAX MB_LEN_MAX RAND_MAX \
    noreturn \
    ONCE_FLAG_INIT TSS_DTOR_ITERATIONS \
    CLOCKS_PER_SEC \
    WEOF WCHAR_MAX WCHAR_MIN WINT_MAX WINT_MIN \
    BITINT_MAXWIDTH BOOL_MAX BOOL_WIDTH CHAR_BIT CHAR_MAX CHAR_MIN CHAR_WIDTH DECIMAL_DIG LLONG_MAX LLONG_MIN LLONG_WIDTH LONG_MAX \
    LONG_MIN LONG_WIDTH SCHAR_MAX SCHAR_MIN SCHAR_WIDTH SHRT_MAX SHRT_MIN SHRT_WIDTH UCHAR_MAX UCHAR_WIDTH ULLONG_MAX ULLONG_WIDTH \
    ULONG_MAX ULONG_WIDTH USHRT_MAX USHRT_WIDTH \
    PTRDIFF_MAX PTRDIFF_MIN PTRDIFF_WIDTH SIZE_MAX SIZE_WIDTH \
    linux unix i386";

/// Types of `<stddef.h>` and `<stdint.h>` that are in no family of [`is_type`].
const TYPES: &str = "max_align_t nullptr_t ptrdiff_t size_t";

/// How the names of families of macros begin. Behind that comes a capital, a digit or an underscore.
const FAMILIES: [&str; 19] = [
    "ATOMIC_",
    "CR_DECIMAL_",
    "DBL_",
    "DEC128_",
    "DEC32_",
    "DEC64_",
    "DEC_",
    "E",
    "FE_",
    "FLT_",
    "FP_",
    "LC_",
    "LDBL_",
    "MATH_",
    "SIG",
    "SIG_",
    "TIME_",
    "WCHAR_",
    "WINT_",
];

/// Whether the headers of C define a macro of this name, or may do so.
fn is_macro(id: &str) -> bool {
    let behind = |prefix: &str, first: fn(&char) -> bool| id.strip_prefix(prefix).and_then(|r| r.chars().next()).is_some_and(|c| first(&c));
    let capital = |c: &char| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_';
    // `INT64_MAX`, `UINT8_C`.
    let limit = ["INT", "UINT"].iter().any(|p| id.starts_with(p)) && ["_C", "_MAX", "_MIN", "_WIDTH"].iter().any(|s| id.ends_with(s));
    // `PRId64`, `SCNxPTR`: a conversion and a size.
    let printed = ["PRI", "SCN"].iter().any(|p| behind(p, char::is_ascii_lowercase) || behind(p, |c| "BX".contains(*c)));
    // `atomic_load`, `ckd_add`, `stdc_bit_width`.
    let new = ["atomic_", "ckd_", "stdc_"].iter().any(|p| id.starts_with(p));
    limit || printed || new || has(MACROS, id) || FAMILIES.iter().any(|f| behind(f, capital))
}

/// Whether the header declares members with a type of this name, or C keeps it for such types.
fn is_type(id: &str) -> bool {
    let family = |prefix: &str| id.starts_with(prefix) && id.ends_with("_t");
    family("int") || family("uint") || has(TYPES, id)
}

fn has(list: &str, id: &str) -> bool {
    list.split_ascii_whitespace().any(|word| word == id)
}

/// Whether C keeps an identifier for compilers, or it is the pattern `_` of Rust, which is no name.
fn is_of_compilers(id: &str) -> bool {
    id == "_" || id.strip_prefix('_').is_some_and(|rest| rest.starts_with(|c: char| c == '_' || c.is_ascii_uppercase()))
}

/// Whether an identifier cannot be the name of a member in C, C++ or Rust everywhere.
fn is_reserved(id: &str) -> bool {
    [C, CXX, RUST].iter().any(|list| has(list, id)) || is_macro(id) || is_type(id)
}

/// Whether a name is an identifier in C, C++ and Rust and no keyword.
pub fn is_identifier(name: &str) -> bool {
    let word =
        name != "_" && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && name.starts_with(|c: char| !c.is_ascii_digit());
    word && [C, CXX, RUST].iter().all(|list| !has(list, name))
}

/// A name made an identifier that C, C++ and Rust leave to their users: what cannot be in one becomes `_`.
pub fn c_identifier(name: &str) -> String {
    let mut id: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if id.is_empty() || id.starts_with(|c: char| c.is_ascii_digit()) {
        id.insert(0, '_');
    }
    if is_of_compilers(&id) {
        id.insert(0, 'x');
    } else if is_reserved(&id) {
        id.push('_');
    }
    id
}

/// Names of members made identifiers as by [`c_identifier`], different from each other and from the macros in the header of
/// the model called `model`.
pub fn c_identifiers(model: &str, names: &[&str]) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    // The header's macros are the model's name, `_` and capitals.
    let of_header = |id: &str| id.strip_prefix(model).and_then(|r| r.strip_prefix('_')).is_some_and(|r| r.starts_with(char::is_uppercase));
    for name in names {
        let base = c_identifier(name);
        let base = if of_header(&base) { format!("{base}_") } else { base };
        let mut candidate = base.clone();
        let mut n = 2;
        while out.contains(&candidate) {
            candidate = format!("{base}_{n}");
            n += 1;
        }
        out.push(candidate);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_get_an_underscore_and_others_stay() {
        for name in [
            "concept",
            "requires",
            "mutable",
            "wchar_t",
            "Self",
            "gen",
            "NULL",
            "linux",
            "INT64_MAX",
            "UINT8_C",
            "PRId64",
            "PRIX8",
            "SCNxPTR",
            "EINVAL",
            "E2BIG",
            "SIGINT",
            "SIG_DFL",
            "FLT_MAX",
            "I",
            "errno",
            "stdin",
            "int64_t",
            "typeof_unqual",
            "nullptr",
            "uint_fast8_t",
            "size_t",
            "ckd_add",
            "static_assert",
            "co_await",
            "and_eq",
            "module",
        ] {
            assert_eq!(c_identifier(name), format!("{name}_"));
        }
        for name in ["x", "input_ids", "E", "Exp", "PRIOR", "INT", "INT8", "int8", "_x", "_1", "A", "exp", "mean", "data", "value"] {
            assert_eq!(c_identifier(name), name);
        }
        assert_eq!(["", "1x", "a.b/c", "é", "_Bool", "__linux__"].map(c_identifier), ["x_", "_1x", "a_b_c", "x_", "x_Bool", "x__linux__"]);
        assert!(["x", "_1x", "INT_MAX", "int_"].iter().all(|n| is_identifier(n)));
        assert!(["", "1x", "a.b", "int", "concept", "gen", "_"].iter().all(|n| !is_identifier(n)));
    }

    #[test]
    fn members_differ_from_each_other_and_from_macros_of_the_header() {
        assert_eq!(
            c_identifiers("m", &["a.b", "a/b", "int", "int_", "m_ALIGN", "m_run"]),
            ["a_b", "a_b_2", "int_", "int__2", "m_ALIGN_", "m_run"]
        );
    }
}
