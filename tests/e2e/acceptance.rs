//! `docs/acceptance.md` names tests; a name that leads nowhere is worse than none.

use std::{fs, path::Path};

fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder of the repository").map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn every_test_named_here_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for folder in ["src", "proto/src", "control-plane/src", "data-plane/src", "tests"] {
        sources(&root.join(folder), &mut code);
    }
    let page = fs::read_to_string(root.join("docs/acceptance.md")).expect("the page");
    let quoted: Vec<_> = page.split('`').skip(1).step_by(2).collect();
    let name = |text: &&str| text.contains('_') && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte));
    let names: Vec<_> = quoted.iter().filter(|text| name(text)).collect();
    assert!(names.len() > 60, "{} tests are named", names.len());
    for path in names {
        let test = path.rsplit("::").next().unwrap_or(path);
        assert!(code.contains(&format!("fn {test}(")), "{path} is named and is not there");
        if let Some((module, _)) = path.rsplit_once("::") {
            let file = format!("tests/e2e/{}.rs", module.replace("::", "/"));
            let text = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{path}: {file}: {error}"));
            assert!(text.contains(&format!("fn {test}(")), "{path} is not in {file}");
        }
    }
}
