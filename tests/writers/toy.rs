//! A Qwen2 in Rust that shows its stages: toy WEIGHTS THETA EPS D N K H F V LAYERS ID... (toy.c, with the other writer)
mod qwenref_dump;
use qwenref_dump::{dump, dump_ids};

struct Weights(std::vec::IntoIter<f32>);
impl Weights {
    fn take(&mut self, n: usize) -> Vec<f32> {
        let w: Vec<f32> = self.0.by_ref().take(n).collect();
        assert_eq!(w.len(), n, "the weights end too early");
        w
    }
}

/// x [rows, w.len() / out] times w [out, columns]
fn mul(x: &[f32], w: &[f32], out: usize) -> Vec<f32> {
    let columns = w.len() / out;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |sum, (a, b)| sum + a * b);
    x.chunks(columns).flat_map(|row| w.chunks(columns).map(move |v| dot(row, v))).collect()
}

fn norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let one = |row: &[f32]| {
        let root = (row.iter().fold(0f32, |sum, v| sum + v * v) / row.len() as f32 + eps).sqrt();
        row.iter().zip(gain).map(|(v, g)| v / root * g).collect::<Vec<f32>>()
    };
    x.chunks(gain.len()).flat_map(one).collect()
}

/// Turns the halves of each head by its position.
fn turn(x: &mut [f32], width: usize, heads: usize, size: usize, theta: f64) {
    for (t, row) in x.chunks_mut(width).enumerate() {
        for head in row.chunks_mut(size).take(heads) {
            for j in 0..size / 2 {
                let angle = t as f32 * theta.powf(-2.0 * j as f64 / size as f64) as f32;
                let (a, b) = (head[j], head[j + size / 2]);
                head[j] = a * angle.cos() - b * angle.sin();
                head[j + size / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    }
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (theta, eps): (f64, f32) = (a[2].parse().unwrap(), a[3].parse().unwrap());
    let whole: Vec<usize> = a[4..11].iter().map(|x| x.parse().unwrap()).collect();
    let [d, n, k, h, f, v, layers] = whole[..] else { panic!("seven sizes") };
    let ids: Vec<i32> = a[11..].iter().map(|x| x.parse().unwrap()).collect();
    let bytes = std::fs::read(&a[1]).unwrap();
    let numbers: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let (mut w, rows, e) = (Weights(numbers.into_iter()), ids.len(), (n + 2 * k) * h);
    let embed = w.take(v * d);
    let mut x: Vec<f32> = ids.iter().flat_map(|&id| embed[id as usize * d..][..d].to_vec()).collect();
    dump_ids("tokens", &ids);
    dump("embedding", Some(0), &x, &[rows, d]);
    for l in 0..layers {
        let show = |stage: &str, x: &[f32]| dump(stage, Some(l), x, &[rows, x.len() / rows]);
        let hidden = norm(&x, &w.take(d), eps);
        show("attn_norm", &hidden);
        let mut qkv = mul(&hidden, &w.take(e * d), e);
        show("qkv_matmul", &qkv);
        let bias = w.take(e);
        qkv.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % e]);
        show("qkv_bias", &qkv);
        let values: Vec<f32> = qkv.clone();
        turn(&mut qkv, e, n + k, h, theta);
        let (mut mix, mut turned) = (vec![0f32; rows * n * h], [vec![], vec![]]);
        for row in qkv.chunks(e) {
            turned[0].extend_from_slice(&row[..n * h]);
            turned[1].extend_from_slice(&row[n * h..(n + k) * h]);
        }
        show("q_post_rope", &turned[0]);
        show("k_post_rope", &turned[1]);
        for t in 0..rows {
            for m in 0..n {
                let (q, at) = (&turned[0][(t * n + m) * h..][..h], m / (n / k));
                let key = |s: usize| &turned[1][(s * k + at) * h..][..h];
                let scores: Vec<f32> = (0..=t).map(|s| mul(q, key(s), 1)[0] / (h as f32).sqrt()).collect();
                let top = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
                let powers: Vec<f32> = scores.iter().map(|s| (s - top).exp()).collect();
                let sum: f32 = powers.iter().sum();
                for (s, p) in powers.iter().enumerate() {
                    let value = &values[s * e + (n + k + at) * h..][..h];
                    value.iter().enumerate().for_each(|(i, y)| mix[(t * n + m) * h + i] += p / sum * y);
                }
            }
        }
        show("attention", &mix);
        let out = mul(&mix, &w.take(d * n * h), d);
        show("attn_out", &out);
        x.iter_mut().zip(&out).for_each(|(x, y)| *x += y);
        show("post_attn_residual", &x);
        let hidden = norm(&x, &w.take(d), eps);
        show("ffn_norm", &hidden);
        let (gate, up) = (mul(&hidden, &w.take(f * d), f), mul(&hidden, &w.take(f * d), f));
        show("ffn_gate", &gate);
        show("ffn_up", &up);
        let both: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        show("ffn_swigl", &both);
        let out = mul(&both, &w.take(d * f), d);
        show("ffn_out", &out);
        x.iter_mut().zip(&out).for_each(|(x, y)| *x += y);
        show("post_ffn_residual", &x);
    }
    let last = norm(&x, &w.take(d), eps);
    dump("final_norm", None, &last, &[rows, d]);
    dump("lm_head", None, &mul(&last[(rows - 1) * d..], &w.take(v * d), v), &[1, v]);
}
