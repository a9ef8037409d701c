import torch

from scripts.transforms import find_body


def test_the_body_is_what_is_above_the_window():
    image = torch.tensor([[-1.0, -0.999, 0.0, 1.0]])
    assert find_body(image).tolist() == [[False, True, True, True]]


def test_all_of_nothing_but_air_counts_as_body():
    assert find_body(torch.full((1, 2, 2), -1.0)).all()
