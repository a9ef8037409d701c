import torch

from scripts.transforms import find_body, find_foreground


def test_the_body_is_what_is_above_the_window():
    image = torch.tensor([[-1.0, -0.999, 0.0, 1.0]])
    assert find_body(image).tolist() == [[False, True, True, True]]


def test_all_of_nothing_but_air_counts_as_body():
    assert find_body(torch.full((1, 2, 2), -1.0)).all()


def test_foreground_is_every_class_but_background():
    assert find_foreground(torch.tensor([[0, 1, 2]])).tolist() == [[False, True, True]]


def test_all_of_a_label_without_foreground_counts_as_such():
    assert find_foreground(torch.zeros(1, 2, 2)).all()
