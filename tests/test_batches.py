import pytest
import torch

from scripts.batches import RandSlabBatch


def ramp():
    """A batch of two crops of 40 slices, whose voxels are the numbers of their slices, 1 to 40, over 100."""
    slices = torch.arange(1.0, 41).expand(2, 1, 4, 4, 40)
    return {"image": slices / 100, "label": slices.to(torch.uint8)}


def test_a_slab_is_padded_with_air_and_background_to_a_multiple():
    torch.manual_seed(0)
    image, label = RandSlabBatch(1.0, (11, 11))(ramp(), "cpu")
    assert image.shape == label.shape == (2, 1, 4, 4, 16)
    assert (image[..., :2] == -1).all() and (image[..., 13:] == -1).all()
    assert (label[..., :2] == 0).all() and (label[..., 13:] == 0).all()
    first = int(label[0, 0, 0, 0, 2])
    assert label[1, 0, 3, 3, 2:13].tolist() == list(range(first, first + 11))
    torch.testing.assert_close(image[..., 2:13], label[..., 2:13] / 100)


def test_slabs_have_all_heights_and_begin_anywhere():
    torch.manual_seed(0)
    labels = [RandSlabBatch(1.0, (38, 39), divisor=1)(ramp(), "cpu")[1] for _ in range(60)]
    ends = {(int(label[0, 0, 0, 0, 0]), int(label[0, 0, 0, 0, -1])) for label in labels}
    assert ends == {(1, 38), (2, 39), (3, 40), (1, 39), (2, 40)}


def test_so_many_batches_are_slabs_as_asked():
    torch.manual_seed(0)
    slabs = [RandSlabBatch(0.4, (8, 8))(ramp(), "cpu")[0].shape[-1] == 16 for _ in range(200)]
    assert sum(slabs) / 200 == pytest.approx(0.4, abs=0.1)


def test_a_batch_of_fewer_slices_keeps_them_all():
    image, label = RandSlabBatch(1.0, (50, 60), divisor=8)(ramp(), "cpu")
    assert torch.equal(image, ramp()["image"])
    assert torch.equal(label, ramp()["label"])
