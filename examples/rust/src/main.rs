//! Classifies pictures of clothes with a vision transformer that is part of the program: code and weights.
//! Without an argument it looks at a picture that is drawn here; with one, at the first ten pictures of an
//! IDX file such as `t10k-images-idx3-ubyte` of Fashion-MNIST.

mod vit {
    include!(concat!(env!("OUT_DIR"), "/vit/vit.rs"));
}

use std::error::Error;

const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
const NAMES: [&str; 10] =
    ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// A pair of trousers.
fn draw() -> Vec<u8> {
    let mut pixels = vec![0; PIXELS];
    for y in 2..26 {
        for x in 9..19 {
            let between = y > 8 && (13..15).contains(&x);
            pixels[y * SIDE + x] = if between { 0 } else { 180 };
        }
    }
    pixels
}

fn read(path: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let file = std::fs::read(path)?;
    match file.split_at_checked(16) {
        Some(([0, 0, 8, 3, .., 28, 0, 0, 0, 28], pixels)) => {
            let n = (pixels.len() / PIXELS).min(10);
            Ok(pixels[..n * PIXELS].to_vec())
        }
        _ => Err(format!("{path}: this is no IDX file with pictures of 28 x 28 (decompress it first)").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let pixels = match std::env::args().nth(1) {
        Some(path) => read(&path)?,
        None => draw(),
    };
    let image: Vec<f32> = pixels.iter().map(|&p| (f32::from(p) / 255.0 - 0.2860) / 0.3530).collect();
    let dims = vit::Dims { batch: (image.len() / PIXELS) as i64 };
    let mut logits = vec![0.0; image.len() / PIXELS * NAMES.len()];

    let model = vit::Model::new()?;
    let mut arena = vit::Arena::new(&dims)?;
    model.run(&dims, &vit::Inputs { image: &image }, &mut vit::Outputs { logits: &mut logits }, &mut arena)?;

    for (i, row) in logits.chunks(NAMES.len()).enumerate() {
        let best = (0..NAMES.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
        println!("picture {i}: {} ({:.2})", NAMES[best], row[best]);
    }
    Ok(())
}
