"""Operations with custom gradients that are faster than XLA's own on some platform."""
