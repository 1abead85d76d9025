use super::*;

fn entry(n: u64) -> AuditEntry {
    let at = Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
    let fields = vec![("what".into(), "approve".into()), ("by".into(), format!("person-{n}"))];
    AuditEntry { id: format!("{n}-0"), kind: AuditKind::Decision, at, fields }
}

fn key() -> SealKey {
    SealKey::new(&[7; 32]).unwrap()
}

/// Ten entries under four links, and one entry that is not sealed yet.
fn sealed() -> (Vec<AuditEntry>, Vec<Seal>) {
    let entries: Vec<_> = (1..=11).map(entry).collect();
    let mut seals: Vec<Seal> = Vec::new();
    for range in [0..3, 3..4, 4..8, 8..10] {
        seals.push(Seal::over(&key(), seals.last(), &entries[range]).unwrap());
    }
    (entries, seals)
}

fn verify(entries: &[AuditEntry], seals: &[Seal], limit: u64, exported: Option<&Seal>) -> Verified {
    let key = key();
    let mut verifier = Verifier::new(&key, seals.to_vec(), limit);
    entries.iter().for_each(|entry| verifier.read(entry));
    verifier.finish(exported)
}

#[test]
fn an_unchanged_audit_has_no_fault() {
    let (entries, seals) = sealed();
    let verified = verify(&entries, &seals, MAX_AUDIT_ENTRIES, seals.get(2));
    assert_eq!((verified.sealed, verified.unsealed, verified.seals), (10, 1, 4));
    assert_eq!(verified.faults, [""; 0]);
    assert_eq!(verify(&entries, &[], MAX_AUDIT_ENTRIES, None).faults, [""; 0]);
    assert_eq!(Seal::over(&key(), None, &[]), None);
}

#[test]
fn every_altered_removed_or_inserted_entry_is_found() {
    let (entries, seals) = sealed();
    for n in 0..10 {
        let found = |change: &dyn Fn(&mut Vec<AuditEntry>)| {
            let mut changed = entries.clone();
            change(&mut changed);
            assert_ne!(
                verify(&changed, &seals, MAX_AUDIT_ENTRIES, None).faults,
                [""; 0],
                "entry {n}"
            );
        };
        found(&|it| it[n].fields[1].1.push('x'));
        found(&|it| it[n].fields[0] = ("wha".into(), "tapprove".into()));
        found(&|it| drop(it.remove(n)));
        found(&|it| drop(it.drain(..=n)));
        found(&|it| drop(it.drain(n..)));
        found(&|it| it.insert(n, AuditEntry { id: format!("{n}-5"), ..entry(99) }));
    }
    let mut swapped = entries.clone();
    (swapped[5].fields, swapped[6].fields) = (entry(7).fields, entry(6).fields);
    assert_ne!(verify(&swapped, &seals, MAX_AUDIT_ENTRIES, None).faults, [""; 0]);
    assert_ne!(verify(&[], &seals, MAX_AUDIT_ENTRIES, None).faults, [""; 0]);
}

#[test]
fn an_altered_or_removed_seal_is_found() {
    let (entries, seals) = sealed();
    for n in 0..3 {
        let mut fewer = seals.clone();
        fewer.remove(n);
        assert_ne!(verify(&entries, &fewer, MAX_AUDIT_ENTRIES, None).faults, [""; 0], "seal {n}");
        let mut forged = seals.clone();
        forged[n].mac = "0".repeat(64);
        assert_ne!(verify(&entries, &forged, MAX_AUDIT_ENTRIES, None).faults, [""; 0], "seal {n}");
    }
    let other = SealKey::new(&[8; 32]).unwrap();
    let mut verifier = Verifier::new(&other, seals.clone(), MAX_AUDIT_ENTRIES);
    entries.iter().for_each(|entry| verifier.read(entry));
    assert_eq!(verifier.finish(None).faults.len(), 4);
    assert!(SealKey::new(&[7; 31]).is_none());
}

#[test]
fn a_truncated_audit_is_found_by_an_exported_seal() {
    let (entries, seals) = sealed();
    let (cut, fewer) = (&entries[..8], &seals[..3]);
    assert_eq!(
        verify(cut, fewer, MAX_AUDIT_ENTRIES, None).faults,
        [""; 0],
        "the cut cannot be detected"
    );
    let faults = verify(cut, fewer, MAX_AUDIT_ENTRIES, seals.last()).faults;
    assert!(faults[0].contains("seal 4 was exported, but the last seal is 3"), "{faults:?}");
    assert_eq!(verify(&[], &[], MAX_AUDIT_ENTRIES, seals.last()).faults.len(), 1);
    let mut regrown = fewer.to_vec();
    regrown.push(Seal::over(&key(), fewer.last(), &[entry(20)]).unwrap());
    let faults =
        verify(&[cut, &[entry(20)]].concat(), &regrown, MAX_AUDIT_ENTRIES, seals.last()).faults;
    assert_eq!(faults, ["seal 4 is not the one that was exported"]);
}

#[test]
fn entries_beyond_the_retention_limit_are_not_a_fault() {
    let (entries, seals) = sealed();
    assert_eq!(verify(&entries[4..], &seals, 7, None).faults, [""; 0]);
    assert_eq!(verify(&entries[5..], &seals[1..], 3, seals.last()).faults, [""; 0]);
    assert_ne!(verify(&entries[5..], &seals, 7, None).faults, [""; 0], "one too few");
    let mut altered = entries[4..].to_vec();
    altered[5].fields[1].1.push('x');
    assert_ne!(verify(&altered, &seals, 7, None).faults, [""; 0]);
}
