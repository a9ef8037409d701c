"""A MONAI Deploy application: the CT in a folder of DICOM files, segmented, as DICOM SEG.

python deploy/app.py -i DICOM_FOLDER -o OUTPUT_FOLDER                     # the bundle this file is in
python deploy/app.py -i DICOM_FOLDER -o OUTPUT_FOLDER -m models/model.ts  # its export, configs inside
"""

import json
import logging
import os
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BUNDLE))  # the configs name parts of its scripts

from monai.deploy.conditions import CountCondition  # noqa: E402
from monai.deploy.core import AppContext, Application  # noqa: E402
from monai.deploy.core.domain import Image  # noqa: E402
from monai.deploy.core.io_type import IOType  # noqa: E402
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator  # noqa: E402
from monai.deploy.operators.dicom_seg_writer_operator import (  # noqa: E402
    DICOMSegmentationWriterOperator,
    SegmentDescription,
)
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator  # noqa: E402
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator  # noqa: E402
from monai.deploy.operators.monai_bundle_inference_operator import (  # noqa: E402
    IOMapping,
    MonaiBundleInferenceOperator,
    get_bundle_config,
)
from pydicom.sr.coding import Code  # noqa: E402

from scripts.errors import InputError, report_input_errors  # noqa: E402

EXPORT = "models/model.ts"
CT = json.dumps({"selections": [{"name": "CT", "conditions": {"Modality": "CT"}}]})
LIVER = Code("10200004", "SCT", "Liver")
CODES = {  # class → category and type
    "liver": (Code("123037004", "SCT", "Anatomical Structure"), LIVER),
    "tumor": (Code("49755003", "SCT", "Morphologically Abnormal Structure"), Code("108369006", "SCT", "Neoplasm")),
}


class LiverApp(Application):
    """Loads DICOM, chooses the CT, makes a volume of it, segments that, writes a SEG."""

    def compose(self) -> None:
        """Connect the operators."""
        context: AppContext = Application.init_app_context(self.argv)
        folder, output, model = (
            Path(path).absolute() for path in (context.input_path, context.output_path, context.model_path)
        )
        exported = model.is_file()
        if not exported and (BUNDLE / EXPORT).is_file():  # the SDK would take it, of whatever weights it was made
            raise InputError(f"{BUNDLE / EXPORT}: would be used, not model.pt; give it by -m, or move it away")
        os.chdir(BUNDLE)  # to which the paths in its configs are relative
        config = get_bundle_config(str(model if exported else BUNDLE), "inference")
        metadata = config[config.meta_key]
        segments = [
            SegmentDescription(name, *CODES[name], metadata["name"], metadata["version"], anatomic_regions=[LIVER])
            for name in config.get_parsed_content("class_names")[1:]
        ]
        load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=folder, name="load")
        select = DICOMSeriesSelectorOperator(  # the longest first, which is taken: others may be scouts
            self, rules=CT, all_matched=True, sort_by_sop_instance_count=True, name="select"
        )
        stack = DICOMSeriesToVolumeOperator(self, name="stack")
        infer = MonaiBundleInferenceOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_path=model if exported else BUNDLE,
            name="infer",
        )
        write = DICOMSegmentationWriterOperator(self, segment_descriptions=segments, output_folder=output, name="write")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, stack, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(stack, infer, {("image", "image")})
        self.add_flow(select, write, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(infer, write, {("pred", "seg_image")})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    report_input_errors()
    LiverApp().run()
