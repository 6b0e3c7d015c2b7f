"""What every test may count on."""

import resource

# A test with hundreds of clients holds both ends of each; many systems allow 1,024 at first.
_, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(_most, 65_536) if _most > 0 else 65_536, _most))
