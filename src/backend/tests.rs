//! The decision, as a table.

use super::Backend::{Aufs, Fuse, Overlay};
use super::*;

const FREE: Facts = Facts {
    wanted: None,
    writer: Writer::Nobody,
    take_over: false,
    only_fuse: None,
    not_aufs: None,
    markers: None,
};

/// The kernel can do these.
fn with(able: &[Backend], facts: Facts) -> Result<Backend, Refusal> {
    let trial = |of: Backend| match able.contains(&of) {
        true => Ok(()),
        false => Err("not here".to_owned()),
    };
    decide(&facts, trial).map(|decision| decision.backend)
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn the_best_that_can_be_had() {
    let option = || Facts {
        only_fuse: some("--ephemeral"),
        ..FREE
    };
    let markers = || Facts {
        markers: some("layer 1 holds .wh. names"),
        ..FREE
    };
    let not_aufs = || Facts {
        not_aufs: some("--portable-upper"),
        ..markers()
    };
    let by = |writer| Facts { writer, ..FREE };
    let both = [Overlay, Aufs];
    let rows: [(&[Backend], Facts, Backend); 14] = [
        (&both, FREE, Overlay),
        (&[Aufs], FREE, Aufs),
        (&[], FREE, Fuse),
        (&both, option(), Fuse),
        (&both, markers(), Aufs),
        (&[Overlay], markers(), Fuse),
        (&both, not_aufs(), Fuse),
        (&both, by(Writer::Unknown), Fuse),
        (&both, by(Writer::ForeignOverlay), Overlay),
        (&[Aufs], by(Writer::ForeignOverlay), Fuse),
        (&both, by(Writer::Noted(Fuse)), Fuse),
        (&both, by(Writer::Noted(Aufs)), Aufs),
        (&both, by(Writer::Noted(Overlay)), Overlay),
        (
            &both,
            Facts {
                take_over: true,
                ..by(Writer::Noted(Overlay))
            },
            Fuse,
        ),
    ];
    for (able, facts, expected) in rows {
        assert_eq!(with(able, facts.clone()), Ok(expected), "{facts:?}");
    }
}

#[test]
fn what_is_asked_for_or_refused() {
    let asked = |wanted| Facts {
        wanted: Some(wanted),
        ..FREE
    };
    for wanted in Backend::ALL {
        assert_eq!(with(&[Overlay, Aufs], asked(wanted)), Ok(wanted));
    }
    let said = |able: &[Backend], facts| match with(able, facts) {
        Ok(backend) => format!("{backend} it is"),
        Err(Refusal::Option(text)) => format!("option: {text}"),
        Err(Refusal::Impossible(text)) => format!("impossible: {text}"),
        Err(Refusal::Upper(text)) => format!("upper: {text}"),
    };
    let with_option = Facts {
        only_fuse: some("--writeback=on"),
        ..asked(Overlay)
    };
    let with_markers = Facts {
        markers: some("layer 1 holds .wh. names"),
        ..asked(Overlay)
    };
    let by = |writer, wanted| Facts {
        writer,
        ..asked(wanted)
    };
    let remembered = Facts {
        writer: Writer::Noted(Overlay),
        only_fuse: some("--writeback=on"),
        ..FREE
    };
    let no_markers_any_more = Facts {
        writer: Writer::Noted(Overlay),
        markers: some("layer 1 holds .wh. names"),
        ..FREE
    };
    let takes_over_aufs = Facts {
        take_over: true,
        ..by(Writer::Noted(Aufs), Fuse)
    };
    let rows = [
        (with_option, "option: --writeback=on cannot be had with"),
        (with_markers, "impossible: overlay: layer 1 holds"),
        (
            by(Writer::Noted(Fuse), Overlay),
            "upper: the upper was written with --backend fuse",
        ),
        (
            by(Writer::Noted(Overlay), Fuse),
            "upper: the upper was written with --backend overlay",
        ),
        (
            by(Writer::Unknown, Overlay),
            "upper: overlay: the upper was written by nobody knows",
        ),
        (
            by(Writer::ForeignOverlay, Aufs),
            "upper: aufs: the upper was written by kernel overlayfs",
        ),
        (by(Writer::ForeignOverlay, Fuse), "fuse it is"),
        (
            remembered,
            "option: --writeback=on cannot be had with --backend overlay; leave it out",
        ),
        (no_markers_any_more, "impossible: overlay: layer 1"),
        (
            takes_over_aufs,
            "upper: the upper was written with --backend aufs",
        ),
    ];
    for (facts, expected) in rows {
        let said = said(&[Overlay, Aufs], facts);
        assert!(said.starts_with(expected), "{said}");
    }
    assert_eq!(said(&[], asked(Overlay)), "impossible: overlay: not here");
}

#[test]
fn nothing_is_tried_in_vain() {
    let facts = Facts {
        only_fuse: some("--ephemeral"),
        ..FREE
    };
    let decision =
        decide(&facts, |of| Err(format!("{of} was tried"))).unwrap_or_else(|refusal| Decision {
            backend: Overlay,
            because: vec![format!("{refusal:?}")],
        });
    assert_eq!(decision.backend, Fuse);
    assert!(
        !decision.because.iter().any(|why| why.contains("was tried")),
        "{decision:?}"
    );
}

#[test]
fn names_are_read_back() {
    for backend in Backend::ALL {
        assert_eq!(Backend::named(backend.name()), Some(backend));
    }
    assert_eq!(Backend::named("auto"), None);
}
