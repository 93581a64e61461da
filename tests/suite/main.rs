mod boot;
fn main() {}
