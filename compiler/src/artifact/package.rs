//! `NAME-config.cmake` and `NAME.pc`: a bundle as a package that CMake and pkg-config find. Both name the folder that they are in,
//! so that bundles can be moved.

use super::interface::Interface;
use std::fmt::Write;

/// The text of `NAME-config.cmake`: a target `NAME::NAME`, the static library with its header, and `NAME_WEIGHTS`, the path of the weights
/// file where there is one.
pub fn cmake(i: &Interface) -> String {
    let (n, m) = (i.name(), i.manifest);
    let mut text = format!(
        "# {n}: a model compiled by {} for {}. Generated, do not edit.
#
#     find_package({n} CONFIG REQUIRED PATHS path/to/this/folder NO_DEFAULT_PATH)
#     target_link_libraries(application PRIVATE {n}::{n})
if(NOT TARGET {n}::{n})
  add_library({n}::{n} STATIC IMPORTED)
  set_target_properties({n}::{n} PROPERTIES
    IMPORTED_LOCATION \"${{CMAKE_CURRENT_LIST_DIR}}/lib{n}.a\"
    IMPORTED_LINK_INTERFACE_LANGUAGES C
    INTERFACE_INCLUDE_DIRECTORIES \"${{CMAKE_CURRENT_LIST_DIR}}\")
endif()
",
        m.compiler, m.target
    );
    if let Some((file, _)) = i.weights_file() {
        writeln!(text, "set({n}_WEIGHTS \"${{CMAKE_CURRENT_LIST_DIR}}/{file}\")").expect("a string takes everything");
    }
    text
}

/// The text of `NAME.pc`: the static library with its header, and the variable `weights`, the path of the weights file where there is one.
pub fn pkg_config(i: &Interface) -> String {
    let (n, m) = (i.name(), i.manifest);
    let weights = i.weights_file().map_or(String::new(), |(file, _)| format!("weights=${{prefix}}/{file}\n"));
    format!(
        "# PKG_CONFIG_PATH=path/to/this/folder pkg-config --cflags --libs {n}. Generated, do not edit.
prefix=${{pcfiledir}}
{weights}
Name: {n}
Description: a model compiled by {} for {}
Version: {}
Cflags: -I${{prefix}}
Libs: -L${{prefix}} -l{n}
",
        m.compiler,
        m.target,
        env!("CARGO_PKG_VERSION")
    )
}
