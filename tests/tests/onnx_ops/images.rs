//! Images of known and of free sizes: resizing and sampling.

use super::{close, count, f32s, i64s, single};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_tests::onnx_build::{Model, float, int, text};

#[test]
fn upsampling_by_whole_numbers_works_for_symbolic_sizes() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["1", "1", "h", "2"])
        .constant("s", f32s(&[4], &[1.0, 1.0, 2.0, 2.0]))
        .node(
            "Resize",
            "x _ s",
            "y",
            &[text("mode", "nearest"), text("coordinate_transformation_mode", "asymmetric"), text("nearest_mode", "floor")],
        )
        .output("y");
    close(&m.run(&[count(&[1, 1, 1, 2])])[0], &[1, 1, 2, 4], &[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
}

fn resize(sizes: &[&str], scales: &[f32], attributes: &[onnx_protobuf::AttributeProto]) -> Model {
    Model::new(19)
        .input("x", Elem::F32, sizes)
        .constant("s", f32s(&[scales.len()], scales))
        .node("Resize", "x _ s", "y", attributes)
        .output("y")
}

/// Results of ONNX Runtime.
#[test]
fn resizing_follows_the_definitions() {
    let x = f32s(&[1, 1, 3, 4], &[0.0, 1.0, 4.0, 2.0, 2.0, 4.0, 1.0, 0.0, 1.0, 4.0, 2.0, 2.0]);
    let is = |attributes: &[onnx_protobuf::AttributeProto], expected: &[f64]| {
        let y = resize(&["1", "1", "3", "4"], &[1.0, 1.0, 1.7, 0.6], attributes).run(std::slice::from_ref(&x)).swap_remove(0);
        close(&y, &[1, 1, 5, 2], expected);
    };
    let (linear, cubic, nearest) = (text("mode", "linear"), text("mode", "cubic"), text("mode", "nearest"));
    let (antialias, places) = (int("antialias", 1), |name: &str| text("coordinate_transformation_mode", name));
    let half_pixel = [0.333333, 4.0, 1.22549, 2.852941, 2.598039, 1.088235, 2.294118, 1.558824, 2.0, 2.0];
    is(std::slice::from_ref(&linear), &half_pixel);
    is(&[linear.clone(), places("pytorch_half_pixel")], &half_pixel);
    is(
        &[linear.clone(), places("half_pixel_symmetric")],
        &[0.666667, 3.333333, 1.764706, 2.235294, 3.333333, 0.666667, 3.137255, 1.450981, 3.0, 2.0],
    );
    is(std::slice::from_ref(&cubic), &[-0.109716, 4.292129, 1.174053, 2.826893, 2.75159, 1.047306, 2.593007, 1.321349, 1.996121, 2.080241]);
    is(
        &[cubic.clone(), int("exclude_outside", 1), float("cubic_coeff_a", -0.5)],
        &[-0.018957, 4.23124, 1.024808, 2.966517, 2.624982, 1.035325, 2.325696, 1.448186, 1.851322, 2.059622],
    );
    is(&[linear, antialias.clone()], &[0.375, 2.888889, 1.283088, 2.336601, 2.680147, 1.486928, 2.400735, 2.003268, 2.125, 2.444444]);
    is(&[cubic, antialias], &[0.093107, 3.206748, 1.354811, 2.429887, 2.909517, 1.559668, 2.772698, 2.030793, 2.201954, 2.70502]);
    is(&[nearest.clone(), text("nearest_mode", "ceil")], &[1.0, 4.0, 4.0, 1.0, 4.0, 1.0, 4.0, 2.0, 4.0, 2.0]);
    let up = text("nearest_mode", "round_prefer_ceil");
    is(&[nearest.clone(), up.clone(), places("asymmetric")], &[0.0, 4.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 2.0]);
    let halves = resize(&["4"], &[2.0], &[nearest, up, places("asymmetric")]).run(&[count(&[4])]).swap_remove(0);
    close(&halves, &[8], &[0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
}

/// Results of ONNX Runtime; with a scale that makes no whole number of places, and of the cut-out, of ONNX's reference.
#[test]
fn single_axes_are_resized_as_defined() {
    let x = f32s(&[10], &[1.0, 2.0, 3.0, 5.0, 8.0, 1.0, 4.0, 2.0, 7.0, 6.0]);
    let scaled = |x: &Tensor, scale: f32, attributes: &[onnx_protobuf::AttributeProto]| {
        resize(&[&x.len().to_string()], &[scale], attributes).run(std::slice::from_ref(x)).swap_remove(0)
    };
    let (linear, antialias, inside) = (text("mode", "linear"), int("antialias", 1), int("exclude_outside", 1));
    let y = scaled(&x, 0.7, &[linear.clone(), antialias.clone(), inside.clone()]);
    close(&y, &[7], &[1.346154, 2.666666, 5.35484, 4.5, 3.0, 4.111111, 6.346154]);
    let y = scaled(&x, 0.7, &[text("mode", "cubic"), antialias.clone(), inside]);
    close(&y, &[7], &[1.225148, 2.504532, 5.978083, 4.599176, 2.292846, 4.162548, 6.693592]);
    let corners = [linear.clone(), text("coordinate_transformation_mode", "align_corners")];
    close(&scaled(&x, 0.65, &corners), &[6], &[1.0, 2.636364, 5.818182, 1.636362, 2.909090, 6.818182]);
    let up = [text("mode", "nearest"), text("nearest_mode", "ceil"), text("coordinate_transformation_mode", "asymmetric")];
    close(&scaled(&count(&[4]), 2.0, &up), &[8], &[0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
    // What has no weight takes no part: the third element in the first place, and what would be behind the last one.
    let mut odd = x.to_f64s();
    odd[2] = f64::NAN;
    let odd = Tensor::build(Elem::F32, &[10], |i| Scalar::Float(odd[i]));
    let y = scaled(&odd, 0.7, &[linear.clone(), antialias]).to_f64s();
    assert!((y[0] - 1.310345).abs() < 1e-5 && y[1].is_nan() && (y[3] - 4.5).abs() < 1e-5, "{y:?}");
    assert_eq!(scaled(&f32s(&[2], &[1.0, f32::INFINITY]), 2.0, &[linear]).to_f64s()[3], f64::INFINITY);
}

/// Results of ONNX Runtime, of the cut-out of ONNX's reference.
#[test]
fn sizes_are_given_or_bound() {
    let x = count(&[3, 4]);
    let sized = |sizes: &[i64], roi: &[f32], attributes: &[onnx_protobuf::AttributeProto]| {
        let m = Model::new(19).input("x", Elem::F32, &["3", "4"]).list("z", sizes).constant("roi", f32s(&[roi.len()], roi));
        m.node("Resize", "x roi _ z", "y", attributes).output("y").run(std::slice::from_ref(&x)).swap_remove(0)
    };
    let places = |name: &str| text("coordinate_transformation_mode", name);
    let (linear, keep) = (text("mode", "linear"), |policy: &str| text("keep_aspect_ratio_policy", policy));
    assert_eq!(sized(&[7, 5], &[], &[keep("stretch")]).sizes(), [7, 5]);
    assert_eq!(sized(&[7, 5], &[], &[keep("not_smaller")]).sizes(), [7, 9]);
    let rows = [[0.0, 1.0, 1.0, 2.0, 3.0], [4.0, 5.0, 5.0, 6.0, 7.0], [4.0, 5.0, 5.0, 6.0, 7.0], [8.0, 9.0, 9.0, 10.0, 11.0]];
    close(&sized(&[7, 5], &[], &[keep("not_larger")]), &[4, 5], &rows.concat());
    assert_eq!(sized(&[3, 8], &[], &[keep("not_larger")]).sizes(), [3, 4]);
    close(&sized(&[1, 2], &[], &[linear.clone(), places("pytorch_half_pixel")]), &[1, 2], &[0.5, 2.5]);
    let cut = [linear, places("tf_crop_and_resize"), float("extrapolation_value", 10.0)];
    let expected = [5.0, 10.0, 10.0, 8.2, 10.0, 10.0, 10.0, 10.0, 10.0];
    close(&sized(&[3, 3], &[0.4, 0.6, 1.2, 1.7], &cut), &[3, 3], &expected);
}

#[test]
fn nearest_places_were_rounded_up_where_images_shrank() {
    let x = f32s(&[1, 1, 1, 8], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let scaled = |opset, op, s: f32| {
        single(opset, op, &x, "s", &[]).constant("s", f32s(&[4], &[1.0, 1.0, 1.0, s])).run(std::slice::from_ref(&x)).swap_remove(0)
    };
    close(&scaled(10, "Resize", 0.6), &[1, 1, 1, 4], &[1.0, 3.0, 5.0, 6.0]);
    close(&scaled(9, "Upsample", 1.25), &[1, 1, 1, 10], &[1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 6.0, 7.0, 8.0]);
    let mut scales = onnx_protobuf::AttributeProto { name: "scales".into(), ..Default::default() };
    scales.type_ = onnx_protobuf::attribute_proto::AttributeType::FLOATS.into();
    scales.floats = vec![1.0, 1.0, 1.0, 2.0];
    let doubled = single(7, "Upsample", &x, "", &[scales]).run(std::slice::from_ref(&x)).swap_remove(0);
    assert_eq!(doubled.to_f64s()[..6], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
}

/// Images of free sizes are resized as those of fixed ones, whatever their sizes are.
#[test]
fn free_sizes_are_resized_as_fixed_ones() {
    let modes = [
        vec![text("mode", "nearest")],
        vec![text("mode", "nearest"), text("nearest_mode", "round_prefer_ceil")],
        vec![text("mode", "linear")],
        vec![text("mode", "linear"), int("antialias", 1)],
        vec![text("mode", "cubic")],
        vec![text("mode", "cubic"), int("antialias", 1)],
        vec![text("mode", "cubic"), int("exclude_outside", 1)],
    ];
    for coordinates in ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"] {
        for (mode, scales) in modes.iter().flat_map(|m| [[1.0, 1.0, 0.5, 2.5], [1.0, 1.0, 1.75, 2.0]].map(|s| (m, s))) {
            let attributes = [mode.clone(), vec![text("coordinate_transformation_mode", coordinates)]].concat();
            let free = resize(&["1", "1", "h", "w"], &scales, &attributes);
            for (h, w) in [(2, 3), (5, 4), (7, 1)] {
                let x = [Tensor::build(Elem::F32, &[1, 1, h, w], |i| Scalar::Int((i * i % 11) as i128))];
                let (h, w) = (h.to_string(), w.to_string());
                let fixed = resize(&["1", "1", &h, &w], &scales, &attributes);
                assert_eq!(free.run(&x), fixed.run(&x), "{coordinates} {mode:?} {scales:?} {h} x {w}");
            }
        }
    }
}

/// As exporters write position tables of vision transformers.
#[test]
fn scales_may_be_quotients_of_sizes() {
    for (offset, size) in [(0.0, 7), (0.1, 7), (0.1, 37), (0.0, 16)] {
        let m = Model::new(18)
            .input("x", Elem::F32, &["1", "1", "h", "w"])
            .constant("table", count(&[1, 1, size, size]))
            .constant("size", f32s(&[], &[size as f32]))
            .constant("offset", f32s(&[], &[offset]))
            .constant("ones", f32s(&[2], &[1.0, 1.0]))
            .list("two", &[2])
            .list("four", &[4])
            .node("Shape", "x", "all", &[])
            .node("Slice", "all two four", "hw", &[])
            .node("Cast", "hw", "floats", &[int("to", 1)])
            .node("Add", "floats offset", "more", &[])
            .node("Div", "more size", "spatial", &[])
            .node("Concat", "ones spatial", "scales", &[int("axis", 0)])
            .node("Resize", "table _ scales", "places", &[text("mode", "cubic")])
            .node("Add", "x places", "y", &[])
            .output("y");
        let g = m.import().unwrap();
        assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[1, 1, h, w]");
        for (h, w) in [(5, 11), (7, 7), (31, 3)] {
            let y = m.run(&[count(&[1, 1, h, w])]).swap_remove(0);
            assert!(y.to_f64s().iter().all(|y| y.is_finite()));
        }
    }
    // A scale that divides by a size excludes 0.
    let m = Model::new(18).input("x", Elem::F32, &["h", "w"]).list("first", &[0]).list("second", &[1]).constant("table", count(&[3, 4]));
    let m = m.node("Shape", "x", "s", &[]).node("Cast", "s", "f", &[int("to", 1)]).node("Gather", "f first", "h", &[]);
    let m = m.node("Gather", "f second", "w", &[]).node("Div", "h w", "q", &[]).node("Concat", "q q", "scales", &[int("axis", 0)]);
    let g = m.node("Resize", "table _ scales", "y", &[]).output("y").import().unwrap();
    let (w, node) = g.bounds.last_key_value().expect("a bound");
    assert_eq!((w.name(), g.symbols[w].min, node.to_string()), ("w", 1, "Resize_0".into()));
    // Quotients keep small numbers, and what they have in common goes.
    let mut m = Model::new(18).input("x", Elem::F32, &["1", "1", "h", "4"]).constant("two", f32s(&[], &[2.0]));
    m = m.constant("ones", f32s(&[3], &[1.0; 3])).constant("seven", f32s(&[], &[7.0])).list("from", &[2]).list("to", &[3]);
    m = m.node("Shape", "x", "all", &[]).node("Slice", "all from to", "height", &[]).node("Cast", "height", "h", &[int("to", 1)]);
    m = m.node("Div", "h seven", "q0", &[]);
    for i in 0..50 {
        m = m.node("Mul", &format!("q{i} two"), &format!("p{i}"), &[]).node("Neg", &format!("p{i}"), &format!("n{i}"), &[]);
        m = m.node("Div", &format!("n{i} two"), &format!("r{i}"), &[]).node("Neg", &format!("r{i}"), &format!("q{}", i + 1), &[]);
    }
    m = m.node("Concat", "ones q50", "scales", &[int("axis", 0)]);
    m = m.constant("table", count(&[1, 1, 4, 7])).node("Resize", "table _ scales", "y", &[text("mode", "linear")]).output("y");
    let g = m.import().unwrap();
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[1, 1, 4, h]");
    let scales = Model::new(18)
        .input("x", Elem::F32, &["1", "1", "h", "4"])
        .input("s", Elem::F32, &["4"])
        .node("Resize", "x _ s", "y", &[text("mode", "linear")])
        .output("y");
    assert!(scales.import().unwrap_err().to_string().contains("must be known at compile time or be computed from sizes"));
    let tie = resize(&["1", "1", "h", "4"], &[1.0, 1.0, 1.3, 1.0], &[]).import().unwrap_err();
    assert!(tie.to_string().contains("--dim"), "{tie}");
}

#[test]
fn what_is_not_finite_stays_where_it_is() {
    let mut image = vec![1f32; 8 * 8];
    (image[3 * 8 + 4], image[6 * 8 + 1]) = (f32::NAN, f32::INFINITY);
    let x = [f32s(&[1, 1, 8, 8], &image)];
    for (mode, reach) in [("linear", 1.0), ("cubic", 2.0)] {
        for antialias in [0, 1] {
            let y = resize(&["1", "1", "8", "8"], &[1.0, 1.0, 2.0, 2.0], &[text("mode", mode), int("antialias", antialias)]).run(&x);
            for (i, v) in y[0].to_f64s().into_iter().enumerate() {
                // Without antialiasing linear places are within the image, and their neighbours may have weight 0.
                let least = if mode == "linear" && antialias == 0 { 0.0 } else { -1.0 };
                let place = |at: usize| (at as f64 / 2.0 - 0.25).max(least);
                let (row, column) = (place(i / 16), place(i % 16));
                let near = |r: f64, c: f64| (row - r).abs() <= reach && (column - c).abs() <= reach;
                assert_eq!(v.is_finite(), !near(3.0, 4.0) && !near(6.0, 1.0), "{mode} {row} {column}: {v}");
            }
        }
    }
    // What lies outside of an image is 0, whatever its border is.
    let x = f32s(&[1, 1, 1, 2], &[f32::NAN, f32::INFINITY]);
    let grid = f32s(&[1, 1, 2, 2], &[-9.0, 0.0, 9.0, 0.0]);
    for mode in ["nearest", "linear", "cubic"] {
        let m = Model::new(20)
            .input("x", Elem::F32, &["1", "1", "1", "2"])
            .input("g", Elem::F32, &["1", "1", "2", "2"])
            .node("GridSample", "x g", "y", &[text("mode", mode)])
            .output("y");
        close(&m.run(&[x.clone(), grid.clone()])[0], &[1, 1, 1, 2], &[0.0, 0.0]);
    }
    let rois = f32s(&[1, 4], &[-40.0, -40.0, -30.0, -30.0]);
    let m = Model::new(16)
        .input("x", Elem::F32, &["1", "1", "1", "2"])
        .input("r", Elem::F32, &["1", "4"])
        .input("b", Elem::I64, &["1"])
        .node("RoiAlign", "x r b", "y", &[int("output_height", 1), int("output_width", 1), int("sampling_ratio", 1)])
        .output("y");
    close(&m.run(&[x, rois, i64s(&[1], &[0])])[0], &[1, 1, 1, 1], &[0.0]);
}

/// A place outside of the image weighs its neighbours as it would within, and those beyond the border repeat it.
#[test]
fn cubic_samples_repeat_the_border() {
    let m = Model::new(20)
        .input("x", Elem::F32, &["1", "1", "1", "3"])
        .input("g", Elem::F32, &["1", "1", "1", "2"])
        .node("GridSample", "x g", "y", &[text("mode", "cubic"), text("padding_mode", "border")])
        .output("y");
    // The place is -0.25, between elements -1 and 0: distances 1.75, 0.75, 0.25, 1.25.
    let weights = [-0.03515625, 0.26171875, 0.87890625, -0.10546875];
    let y = m.run(&[f32s(&[1, 1, 1, 3], &[2.0, 10.0, 3.0]), f32s(&[1, 1, 1, 2], &[-2.5 / 3.0, 0.0])]);
    close(&y[0], &[1, 1, 1, 1], &[2.0 * (weights[0] + weights[1] + weights[2]) + 10.0 * weights[3]]);
}

#[test]
fn indices_of_images_and_caches_are_checked() {
    let result = |m: &Model, inputs: &[Tensor]| {
        let g = m.import().unwrap();
        g.evaluate(inputs, &tfc_tests::models::bind(&g, inputs)).map_err(|e| e.to_string())
    };
    let align = Model::new(16)
        .input("x", Elem::F32, &["n", "1", "2", "2"])
        .input("r", Elem::F32, &["1", "4"])
        .input("b", Elem::I64, &["1"])
        .node("RoiAlign", "x r b", "y", &[int("output_height", 1), int("output_width", 1), int("sampling_ratio", 1)])
        .output("y");
    for (image, fine) in [(0, true), (1, true), (2, false), (-1, false), (i64::MIN / 4, false)] {
        let rois = f32s(&[1, 4], &[0.0, 0.0, 1.0, 1.0]);
        assert_eq!(result(&align, &[count(&[2, 1, 2, 2]), rois, i64s(&[1], &[image])]).is_ok(), fine, "image {image}");
    }
    for mode in ["linear", "circular"] {
        let scatter = Model::new(24)
            .input("past", Elem::F32, &["2", "5", "1"])
            .input("update", Elem::F32, &["2", "2", "1"])
            .input("at", Elem::I64, &["2"])
            .node("TensorScatter", "past update at", "y", &[text("mode", mode)])
            .output("y");
        for (at, linear, circular) in [(0, true, true), (3, true, true), (4, false, true), (-1, false, false), (12, false, true)] {
            let fine = if mode == "linear" { linear } else { circular };
            let inputs = [count(&[2, 5, 1]), count(&[2, 2, 1]), i64s(&[2], &[0, at])];
            assert_eq!(result(&scatter, &inputs).is_ok(), fine, "{mode} at {at}");
        }
    }
}
