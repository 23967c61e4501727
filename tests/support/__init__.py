"""What the tests of the engine share: networks (random and fixed), and the judge of exactness."""
