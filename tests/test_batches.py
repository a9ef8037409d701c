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


def test_of_a_deep_crop_that_is_no_slab_as_many_slices_are_left_as_asked():
    torch.manual_seed(0)
    whole = RandSlabBatch(0.0, (8, 8), max_slices=32)
    labels = [whole(ramp(), "cpu")[1] for _ in range(60)]
    assert {int(label[0, 0, 0, 0, 0]) for label in labels} == set(range(1, 10))  # anywhere
    assert {label.shape[-1] for label in labels} == {32}
    assert torch.equal(RandSlabBatch(0.0, (8, 8), max_slices=40)(ramp(), "cpu")[0], ramp()["image"])
    assert RandSlabBatch(1.0, (39, 39), divisor=1, max_slices=32)(ramp(), "cpu")[0].shape[-1] == 39  # slabs as they are


@pytest.mark.parametrize(
    ("liver", "scan", "firsts"),
    [
        ((12, 30), (0, 40), {2, 3, 4, 28, 29, 30}),  # slices 2-11, which it lies above, to 4-13; 28-37 to 30-39
        ((0, 30), (0, 40), {28, 29, 30}),  # goes on below the crop
        ((12, 30), (12, 40), {28, 29, 30}),  # goes on below the scan, beyond which there is air
        ((12, 40), (0, 40), {2, 3, 4}),
        ((12, 30), (0, 30), {2, 3, 4}),  # goes on above the scan
        ((20, 21), (0, 40), {10, 11, 20, 21}),  # has one slice alone
        ((12, 38), (0, 40), {2, 3, 4}),  # a slab above it does not fit
    ],
)
def test_slabs_end_in_the_tip_of_a_liver_or_beside_it(liver, scan, firsts):
    torch.manual_seed(0)
    numbers = torch.arange(40)
    label = ((numbers >= liver[0]) & (numbers < liver[1])).to(torch.uint8).expand(1, 1, 4, 4, 40)
    image = torch.where((numbers >= scan[0]) & (numbers < scan[1]), numbers / 100, -0.9).expand(1, 1, 4, 4, 40)
    slabs = RandSlabBatch(1.0, (10, 10), divisor=1, tip_prob=1.0, tip=2)
    images = [slabs({"image": image, "label": label}, "cpu")[0] for _ in range(60)]
    assert {round(float(image[0, 0, 0, 0, 0]) * 100) for image in images} == firsts


def test_the_tip_is_that_of_one_of_several_crops():
    torch.manual_seed(0)
    numbers = torch.arange(40)
    label = torch.stack([(numbers >= 15), (numbers < 15)]).to(torch.uint8)[:, None, None, None]
    image = (numbers / 100).expand(2, 1, 1, 1, 40)
    slabs = RandSlabBatch(1.0, (10, 10), divisor=1, tip_prob=1.0, tip=0)
    images = [slabs({"image": image, "label": label}, "cpu")[0] for _ in range(60)]
    assert {round(float(image[0, 0, 0, 0, 0]) * 100) for image in images} == {5, 15}


def test_without_a_tip_a_slab_begins_anywhere():
    torch.manual_seed(0)
    slabs = RandSlabBatch(1.0, (38, 39), divisor=1, tip_prob=1.0)
    for labelled in (0, 1):
        batch = {"image": ramp()["image"], "label": torch.full((2, 1, 4, 4, 40), labelled)}
        firsts = {round(float(slabs(batch, "cpu")[0][0, 0, 0, 0, 0]) * 100) for _ in range(60)}
        assert firsts == {1, 2, 3}


def test_so_many_slabs_end_in_a_tip_as_asked():
    torch.manual_seed(0)
    batch = ramp() | {"label": (ramp()["label"] > 36).to(torch.uint8)}
    slabs = RandSlabBatch(1.0, (8, 8), divisor=1, tip_prob=0.5, tip=0)
    firsts = [round(float(slabs(batch, "cpu")[0][0, 0, 0, 0, 0]) * 100) for _ in range(200)]
    assert firsts.count(29) / 200 == pytest.approx(0.5 + 0.5 / 33, abs=0.1)
