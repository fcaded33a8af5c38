use super::*;

use std::path::Path;

fn fetcher(layer: &Path, limits: Limits) -> Fetcher {
    let at = LayerAt {
        identity: "aa".to_owned(),
        path: Some(layer.to_owned()),
    };
    let fetcher = Fetcher::new(vec![at], limits, Arc::new(Ahead::new(0)));
    fetcher.open_roots();
    fetcher
}

fn wanted(path: &str, size: u64, hash: u64) -> Wanted {
    Wanted {
        layer: 0,
        path: path.as_bytes().into(),
        pieces: u64::MAX,
        size,
        hash,
        is_more: false,
    }
}

#[test]
fn what_programs_open_themselves_does_not_count_against_the_bounds() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut files = Vec::new();
    for n in 0..3 {
        std::fs::write(dir.path().join(n.to_string()), [0; 64])?;
        files.push(wanted(&n.to_string(), 64, n));
    }
    let limits = Limits {
        files: 1,
        bytes: 64,
        ..Limits::default()
    };
    let fetcher = fetcher(dir.path(), limits);
    fetcher.ahead.queue(0..3);
    assert!((0..2).all(|n| fetcher.ahead.claim(n).is_none()));
    fetcher.fetch(files);
    assert_eq!(fetcher.ahead.counts().bytes, 64);
    Ok(())
}

#[test]
fn what_a_file_has_counts_and_not_what_it_is_said_to_have() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, size) in [("small", 64), ("large", 6400), ("next", 640)] {
        std::fs::write(dir.path().join(name), vec![0; size])?;
    }
    let limits = Limits {
        readers: 1,
        most_readers: 1,
        bytes: 1000,
        ..Limits::default()
    };
    let fetcher = fetcher(dir.path(), limits);
    fetcher.fetch(vec![
        wanted("small", 900, 1),
        wanted("large", 100, 2),
        wanted("next", 640, 3),
    ]);
    let counts = fetcher.ahead.counts();
    assert_eq!((counts.files, counts.failed, counts.bytes), (2, 1, 704));
    Ok(())
}

#[test]
fn what_comes_last_is_fetched_first() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let fetcher = fetcher(dir.path(), Limits::default());
    for names in [["a", "b"], ["c", "d"]] {
        let files = names.map(|name| wanted(name, 1, 0)).into();
        fetcher.work.lock().add(files);
    }
    let order = std::iter::from_fn(|| fetcher.next());
    let order: Vec<u8> = order.flat_map(|(_, wanted)| wanted.path.to_vec()).collect();
    assert_eq!(order, b"cdab");
    Ok(())
}

#[test]
fn a_large_file_that_is_there_is_warm() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let size = 64 << 20;
    std::fs::File::create(dir.path().join("f"))?.set_len(size)?;
    let begun = Instant::now();
    loop {
        let fetcher = fetcher(dir.path(), Limits::default());
        fetcher.ahead.queue(std::iter::once(1));
        let place = Place { batch: 0, at: 0 };
        let outcome = fetcher.fetch_one(place, &wanted("f", size, 1), &mut [0; BUFFER]);
        assert_eq!(fetcher.ahead.counts().bytes, size);
        // The machine may do something else meanwhile.
        if matches!(outcome, Outcome::Fetched { warm: true }) {
            return Ok(());
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
