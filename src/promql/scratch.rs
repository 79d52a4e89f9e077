use super::testing::Memory;
use super::*;
use crate::model::*;
use crate::store::*;
use std::sync::Arc;

fn metric(text: &str) -> Option<Labels> {
    if text == "{}" { return Some(Labels::empty()); }
    let text2 = text.strip_prefix('{').map(|t| format!("{{zzz!=\"q\",{t}")).unwrap_or(text.to_owned());
    match parse::parse(&text2) {
        Ok(Node::Select(s)) => Some(Labels::from_pairs(s.matchers.iter().filter_map(|m| match &m.op { MatchOp::Equal(v) => Some((m.name.clone(), v.clone())), _ => None }))),
        _ => None,
    }
}
fn split_metric(line: &str) -> (String, String) {
    let (mut depth, mut q) = (0, false);
    for (i, c) in line.char_indices() {
        match c { '"' => q = !q, '{' if !q => depth += 1, '}' if !q => depth -= 1,
            c if c.is_whitespace() && !q && depth == 0 => return (line[..i].to_owned(), line[i..].trim().to_owned()), _ => {} }
    }
    (line.to_owned(), String::new())
}
fn hist(text: &str) -> Option<ExponentialHistogram> {
    let (mut schema, mut count, mut sum, mut z) = (0i8, 0.0, 0.0, 0.0);
    let (mut p, mut n) = (BucketSpan { offset: 0, counts: vec![] }, BucketSpan { offset: 0, counts: vec![] });
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let (k, r) = rest.split_once(':')?;
        let (v, r2) = if r.starts_with('[') { let (v, r2) = r[1..].split_once(']')?; (v, r2) } else { r.split_once(' ').unwrap_or((r, "")) };
        let nums: Vec<f64> = v.split_whitespace().filter_map(|x| num(x)).collect();
        match k { "schema" => schema = v.parse().ok()?, "count" => count = num(v)?, "sum" => sum = num(v)?, "z_bucket" => z = num(v)?,
            "buckets" => p.counts = nums, "n_buckets" => n.counts = nums, "offset" => p.offset = v.parse::<i32>().ok()?, "n_offset" => n.offset = v.parse::<i32>().ok()?,
            "counter_reset_hint" => {}, "z_bucket_w" => {}, _ => return None }
        rest = r2.trim();
    }
    ExponentialHistogram::from_parts(schema, z, count, sum, p, n)
}
fn num(t: &str) -> Option<f64> { t.parse().ok() }
fn tokens(t: &str) -> Vec<String> {
    let mut out = vec![]; let mut cur = String::new(); let mut d = 0;
    for c in t.chars() { match c { '{' => d += 1, '}' => d -= 1, _ => {} }
        if c.is_whitespace() && d == 0 { if !cur.is_empty() { out.push(std::mem::take(&mut cur)); } } else { cur.push(c); } }
    if !cur.is_empty() { out.push(cur); } out
}
fn values(t: &str) -> Option<Vec<Option<Value>>> {
    let mut out = vec![];
    for tok in tokens(t) {
        if tok.starts_with("{{") {
            let end = tok.find("}}")? + 2; let h = hist(&tok[..end])?; let rest = &tok[end..];
            if rest.is_empty() { out.push(Some(Value::Histogram(Arc::new(h)))); continue; }
            if let Some(n) = rest.strip_prefix('x') { for _ in 0..=n.parse::<usize>().ok()? { out.push(Some(Value::Histogram(Arc::new(h.clone())))); } continue; }
            let sign = rest.chars().next()?; let (d, n) = rest[1..].rsplit_once('x')?; let d = hist(d)?;
            let mut cur = h;
            for i in 0..=n.parse::<usize>().ok()? { if i > 0 { if sign == '+' { cur.merge(&d) } else { cur.subtract(&d) } } out.push(Some(Value::Histogram(Arc::new(cur.clone())))); }
            continue;
        }
        if tok == "_" { out.push(None); continue; }
        if tok == "stale" { out.push(Some(Value::stale())); continue; }
        if let Some(n) = tok.strip_prefix("_x") { for _ in 0..n.parse::<usize>().ok()? { out.push(None); } continue; }
        if let Some(v) = num(&tok) { out.push(Some(Value::Float(v))); continue; }
        let (b, n) = tok.rsplit_once('x')?; let n: usize = n.parse().ok()?;
        let (a, d) = if let Some(v) = num(b) { (v, 0.0) } else {
            let at = b.char_indices().skip(1).filter(|(i, c)| (*c == '+' || *c == '-') && !b[..*i].ends_with('e')).map(|x| x.0).next()?;
            let a = num(&b[..at])?; let d = num(b[at..].trim_start_matches('+').trim_start_matches("--"))?; (a, d) };
        for i in 0..=n { out.push(Some(Value::Float(a + d * i as f64))); }
    }
    Some(out)
}
fn close(a: &Value, b: &Value) -> bool {
    let f = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() / (a.abs() + b.abs()) < 1e-6;
    match (a, b) { (Value::Float(a), Value::Float(b)) => f(*a, *b),
        (Value::Histogram(a), Value::Histogram(b)) => f(a.count(), b.count()) && f(a.sum(), b.sum()) && a.schema() == b.schema() && { let (x, y) = (a.buckets(), b.buckets()); x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| x.lower == y.lower && f(x.count, y.count)) },
        _ => false }
}
#[test]
fn scratch_corpus() {
    let (mut ok, mut bad, mut skip) = (0, 0, 0);
    for entry in std::fs::read_dir("/tmp/q-corpus").unwrap() {
        let path = entry.unwrap().path();
        if std::env::var("ONLY").is_ok_and(|o| !path.to_string_lossy().contains(&o)) { continue; }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(|l| if l.trim_start().starts_with('#') { "" } else { l }).collect();
        let (mut data, mut tainted): (Vec<(Labels, Vec<(i64, Value)>)>, bool) = (vec![], false);
        let mut i = 0;
        while i < lines.len() {
            let line = lines[i].trim_end(); i += 1;
            if line.starts_with("clear") { data.clear(); tainted = false; continue; }
            let mut block = vec![];
            while i < lines.len() && (lines[i].starts_with(' ') || lines[i].starts_with('\t')) && !lines[i].trim().is_empty() { block.push(lines[i].trim()); i += 1; }
            if line.starts_with("load") {
                if line.starts_with("load_with") { tainted = true; }
                let step = parse_duration_ms(line.split_whitespace().nth(1).unwrap()).unwrap();
                for l in block {
                    let (m, v) = split_metric(l);
                    let (Some(m), Some(v)) = (metric(&m), values(&v)) else { tainted = true; continue };
                    let s: Vec<_> = v.into_iter().enumerate().filter_map(|(i, v)| Some((i as i64 * step, v?))).collect();
                    if let Some(e) = data.iter_mut().find(|d| d.0 == m) { e.1.extend(s); e.1.sort_by_key(|x| x.0); } else { data.push((m, s)); }
                }
                continue;
            }
            if !line.starts_with("eval") { continue; }
            let words: Vec<&str> = line.split_whitespace().collect();
            let mut mem = Memory::default();
            for (l, s) in &data { mem = mem.raw(l.clone(), s.clone()); }
            let engine = mem.engine();
            let dur = |t: &str| if t == "0" { 0 } else { parse_duration_ms(t.trim_start_matches('-')).unwrap_or(0) * if t.starts_with('-') { -1 } else { 1 } };
            let after = |n: usize| { let mut r = line; for _ in 0..n { r = r.trim_start(); r = &r[r.find(char::is_whitespace).unwrap_or(r.len())..]; } r.trim().to_owned() };
            let (expr, got, grid) = if words[1] == "range" {
                let (a, b, c) = (dur(words[3]), dur(words[5]), dur(words[7]));
                let e = after(8); let g = engine.range(&e, a, b, c); (e, g, (a, b, c))
            } else { let t = dur(words[3]); let e = after(4); let g = engine.instant(&e, t); (e, g, (t, t, 1)) };
            let want_fail = line.starts_with("eval_fail") || block.iter().any(|l| l.starts_with("expect fail"));
            let ordered = block.iter().any(|l| l.starts_with("expect ordered")) || line.starts_with("eval_ordered");
            let expected: Vec<&str> = block.iter().copied().filter(|l| !l.starts_with("expect")).collect();
            if block.iter().any(|l| l.starts_with("expect string") || l.starts_with("expect range")) { skip += 1; continue; }
            let mut fail = |why: String| { if tainted { skip += 1; println!("TAINT") } else { bad += 1; println!("{}:{} {expr}\n     {why}", path.file_name().unwrap().to_string_lossy(), i); } };
            let got = match got { Err(e) if want_fail && !e.to_string().contains("not supported yet") => { ok += 1; continue }
                Err(e) if e.to_string().contains("not supported yet") => { skip += 1; println!("UNS {e}"); continue }
                Err(e) => { fail(e.to_string()); continue } Ok(_) if want_fail => { fail("should fail".into()); continue } Ok(v) => v };
            let got: Vec<(Labels, Vec<(i64, Value)>)> = match got {
                QueryValue::Scalar(s) => vec![(Labels::empty(), vec![(grid.0, s.value)])],
                QueryValue::Vector(v) => v.into_iter().map(|s| (s.labels, vec![(grid.0, s.sample.value)])).collect(),
                QueryValue::Matrix(m) => m.into_iter().map(|s| (s.labels, s.samples.into_iter().map(|x| (x.timestamp_ms, x.value)).collect())).collect(),
                QueryValue::Text { .. } => { skip += 1; continue } };
            let mut want = vec![]; let mut unsup = false;
            for l in expected { if let Some(v) = num(l) { want.push((Labels::empty(), vec![(grid.0, Value::Float(v))])); continue; }
                let (m, v) = split_metric(l); match (metric(&m), values(&v)) { (Some(m), Some(v)) => { let s: Vec<_> = v.into_iter().enumerate().filter_map(|(i, v)| Some((grid.0 + i as i64 * grid.2, v?))).collect(); want.push((m, s)) } _ => unsup = true } }
            if unsup { skip += 1; println!("UNSWANT"); continue; }
            let eq = |a: &(Labels, Vec<(i64, Value)>), b: &(Labels, Vec<(i64, Value)>)| a.0 == b.0 && a.1.len() == b.1.len() && a.1.iter().zip(&b.1).all(|(x, y)| x.0 == y.0 && close(&x.1, &y.1));
            let same = got.len() == want.len() && if ordered { got.iter().zip(&want).all(|(a, b)| eq(a, b)) } else { want.iter().all(|w| got.iter().any(|g| eq(g, w))) };
            if same { ok += 1 } else { let show = |v: &Vec<(Labels, Vec<(i64, Value)>)>| { let mut s = format!("{v:?}"); if s.len() > 600 { let mut n = 600; while !s.is_char_boundary(n) { n -= 1 } s.truncate(n) } s }; fail(format!("got  {}\n     want {}", show(&got), show(&want))) }
        }
    }
    println!("ok {ok} bad {bad} skip {skip}");
}

#[test]
fn scratch_speed() {
    struct Big(Vec<Sample>);
    impl Select for Big {
        fn select(&self, s: &Selection) -> Result<Vec<SelectedSeries>, StoreError> {
            let t = std::time::Instant::now();
            let samples: Vec<Sample> = self.0.iter().filter(|x| x.timestamp_ms >= s.start_ms && x.timestamp_ms <= s.end_ms).cloned().collect();
            let r = (0..100).map(|i| SelectedSeries { labels: Labels::from_pairs([("__name__".to_owned(), "x".to_owned()), ("i".to_owned(), i.to_string())]), samples: samples.clone() }).collect();
            println!("select {:?}", t.elapsed());
            Ok(r)
        }
    }
    let samples: Vec<Sample> = (0..120_960).map(|i| Sample { timestamp_ms: i * 10_000, value: Value::Float(i as f64) }).collect();
    let engine = Engine::new(Arc::new(Big(samples)), Limits::default());
    let end = 120_959 * 10_000;
    for q in ["last_over_time(x[14d])", "min_over_time(x[14d])", "sum_over_time(x[14d])", "rate(x[14d])", "sum(x)"] {
        let t = std::time::Instant::now(); let r = engine.instant(q, end); println!("{q} {:?} {}", t.elapsed(), r.is_ok());
    }
    for q in ["sum(rate(x[5m]))", "sum by (i) (x) / on (i) x", "last_over_time(x[1h])", "max_over_time(x[1h])"] {
        let t = std::time::Instant::now(); let r = engine.range(q, 0, end, 1_200_000); println!("range {q} {:?} {}", t.elapsed(), r.is_ok());
    }
}
