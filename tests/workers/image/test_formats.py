"""Formats that a job asks for by `input.formats`: others are told, and what is asked for is turned once."""

from __future__ import annotations

import base64
import io
import pickle
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from jobs.report.thumbnails import thumbnail
from tests.support.images import encode, exif, photo, samples, stored_as
from workers.contract import ALL_FORMATS, USUAL_FORMATS, Preprocess
from workers.image import plugins
from workers.image.decode import decode_stored, in_a_usual_format, upright
from workers.image.errors import BadImage, DecoderMissing
from workers.image.formats import jxl_header, sniff
from workers.image.resize import Preparer, decode_crop
from workers.isolation.sample_decoder import SampleDecoder

pillow_heif = pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")
pillow_heif.register_heif_opener()  # to write such files; what reads them does not look at what is registered

LOOK_HWC = photo()
QUARTERS_HWC = np.repeat(np.repeat(np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]]), 32, 0), 48, 1)
"""Red and green above blue and black, 96 by 64."""


def decode(data: bytes, formats: tuple[str, ...] = ALL_FORMATS) -> np.ndarray:
    stored = decode_stored(data, formats=formats)
    return np.ascontiguousarray(upright(stored.image_HWC, stored.orientation))


def near(found_HWC: np.ndarray, expected_HWC: np.ndarray) -> bool:
    return found_HWC.shape == expected_HWC.shape and np.abs(found_HWC.astype(int) - expected_HWC).mean() < 6


FILES = {
    "heif": encode(LOOK_HWC, "HEIF", quality=90),
    "jxl": encode(LOOK_HWC, "JXL", quality=90),
    "jpeg2000": encode(LOOK_HWC, "JPEG2000"),
    **{name: samples()[name if name != "jpeg" else "jpeg_420"].data for name in USUAL_FORMATS},
}


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_format_is_decoded_where_it_is_asked_for_and_told_where_it_is_not(name: str) -> None:
    assert near(decode(FILES[name], (name,)), LOOK_HWC)
    others = tuple(other for other in ALL_FORMATS if other != name)
    with pytest.raises(BadImage, match=rf"write `formats: \[.*, {name}\]` below input") as caught:
        decode_stored(FILES[name], formats=others)
    assert caught.value.code == "unsupported_format"
    assert ("pip install 'stint[" in caught.value.message) == (name in plugins.MODULES)


@pytest.mark.parametrize("name", ["heif", "jxl", "jpeg2000"])
def test_the_extras_are_off_unless_they_are_asked_for(name: str) -> None:
    with pytest.raises(BadImage, match="is not among"):
        decode_stored(FILES[name])


def test_a_job_that_does_not_ask_for_them_loads_no_library_of_extras(tmp_path: object) -> None:
    program = (
        "import sys; from workers.image.decode import decode_stored; from workers.image.errors import BadImage\n"
        "from workers.image.plugins import check_decoders; check_decoders(('jpeg', 'heif', 'jxl'))\n"
        "for data in (sys.stdin.buffer.read(),):\n"
        "    try: decode_stored(data)\n"
        "    except BadImage: pass\n"
        "assert not {'pillow_heif', 'pillow_jxl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], input=FILES["heif"], check=True)


@pytest.mark.parametrize("name", ["heif", "jxl"])
def test_an_extra_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.MODULES, name, "no_such_library")
    plugins.check_decoders(USUAL_FORMATS)
    for ask in (lambda: plugins.check_decoders(("jpeg", name)), lambda: decode_stored(FILES[name], formats=(name,))):
        with pytest.raises(DecoderMissing, match=rf"pip install 'stint\[{name}\]' on the driver and on the workers"):
            ask()


def test_formats_are_those_of_one_job_and_travel_with_its_preprocessing() -> None:
    shared = Preprocess(resize_px=64, crop_px=56, mean=(0.0,) * 3, std=(1.0,) * 3)
    phones, web = pickle.loads(pickle.dumps((shared.of(("heif",)), shared.of(("jpeg", "png")))))
    assert asdict(shared).keys() == {"resize_px", "crop_px", "mean", "std", "interpolation", "decode"}, (
        "bundles keep it"
    )
    assert replace(phones, decode="exact") == phones
    out_HWC = np.empty((56, 56, 3), np.uint8)
    preparers = {"heif": Preparer(phones), "jpeg": Preparer(web)}
    for _ in range(2):
        for name, preparer in preparers.items():
            preparer.put(FILES[name], out_HWC)
            with pytest.raises(BadImage, match="is not among"):
                preparer.put(FILES["jpeg" if name == "heif" else "heif"], out_HWC)
    with closing(SampleDecoder(2**31)) as decoder:
        assert near(decoder.decode(memoryview(FILES["heif"]), phones), decode_crop(FILES["jpeg"], shared))
        with pytest.raises(BadImage, match="is not among"):
            decoder.decode(memoryview(FILES["heif"]), web)
    assert thumbnail(FILES["heif"], formats=phones.formats)
    assert not thumbnail(FILES["heif"])


# ------------------------------------------------------------------------------------------ which way up


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JXL", "WEBP", "PNG", "TIFF", "JPEG"])
def test_each_format_is_turned_once(kind: str, orientation: int) -> None:
    """HEIF and AVIF keep the rotation as one of their own, the plugin of JPEG XL as EXIF, TIFF as a tag."""
    stored = Image.fromarray(stored_as(QUARTERS_HWC, orientation))
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif(orientation).tobytes()}
    assert near(decode(encode(stored, kind, **options)), QUARTERS_HWC)


# By libjxl's own cjxl (0.7) of a JPEG with each orientation, which is in the header of the codestream then.
CODESTREAMS = (
    b"{|XO5LUADhXa(Cq3jlx$l~KkGUe5J=`JuyN+QxN;w%WD;0000Uz`qj4#52Ic#0(^fjE#+sijImgIyw@y>(+MJ2$Dh0@`Vu{h~LZRA6&q})xftf07g0{Z9DRf0T7TGy*ugujYsrrmnYN}0#g3N2aGVZGr{4o-vweiPB6&w3*O~e^#}d2S;DfVhL<$pYqGgte^FBuAu=M6ZGVz>OhO>AlI7%y9ZRGz%*+GA&i@1~Oqd1W72l9=3>X3XvYo*Z&<St|`g^Zo`GTr(sJ23$9;vm{x5<o%IX@mw9hMl>xT#P~KXB0nfP@m<7;fr*AOME#N-BK^AV6}4cm;t?BFl)~8PsvfR_i>U5XJxxinReMw;e6sSc4>Tz}ea1sY{_JRE<|u{)x|nbO_)D-0X<~<h;N$B-7D0j(S{Fyk>sBa&erc0x~@gC185jH-1}|ZoA4Mx_~hO",
    b"{|XNckWgF_0bB(`KnnnX3YAgD4PMUmeEFfnV%o-ahPK+a000009>Bj6#>6wg!o&<DGcq<RnvIT%F*-Uj1_yDlt=8?ap(tkqIJZXehr2vcg)$FF$n()06DSeKWp&?=aK`C`DEI~eG_fskdOtvl<e=bK>3|f+YN@8)G9PUQBk*wsZp`WU-m-(l=ysr^JctBVj&%NsX7CtMvpH!T8A;?-E#iJQJ2*ID4Fy-X05~=Sfy@$Sb2HaB%OVHveRk$R#81GJ@Y9`I>HDb~hi(Go>5*FUe?QD=3hyD&%)D=sn`!dMXMjsz07xjojp3&52LfQ&t~PNG25`Ir@b%ka%*>?K8bJvx=^g3d%7|rXe*jV|$#$p8GiQJ^V+NPgA25vYV7v)7LGZ0fkZfeMr-ff<{r);1zCJUbo`jWeb_bo06c-w@mu76jz_nL%d&Zt)jl7-$`~m",
    b"{|XNkkWgF_0YnAae+vMB3YAgD4PMUmeEFfnV%o-ahPK+a000009>Bj6#>6wg!c+qwpOI0q(QI^7jKOehYz!iCaNX9{U2`W0^#JA9;sSE)&h>y9j58z&{>>2ZFk-|>D5&{QKgtSfzBPm%tU~E<03WPGC2DUR{}Q;!AIQTEGW`hvWoeD<hmYLz;O;mYCl3Tnf#hn~d#>pDcLLK(CNSSKC~*J5?c;Nx*cgbuV_2&^;3_;21kss@zzG0P5Px^{b3ZWnG2b0-zyjW~S>u$Ml>%;(w9d-N8B|mnP!urA3jjGPH?kug0Wj=V8W1o94Yvv+k9byL-{=Wx{&KT$(v}@H@zO9AsuBXj-al}51#MI5lOy;b5jo(F7jFH5MGa>rdK+Oc0C<oDt3l)O35_0M>^)La9xQ5M*_Pb=4m6YoQOxTq4g#wR$Fwew7!_~}",
    b"{|XNskWgF_0YC-QK??wY3YAgD4PMUmeEFfnV%o-ahPK+a000009>Bj6#>6wg!o&=uiHwbnj*O0qF*-WNNYt)XyJZtVF+ITLpnqljIpBg$;FiMTo<sjH408&77^Mn7%q`LJu^172Z2Hdtuc4rW($EkV&R8<?$m5A>1OtDjcw+DZ-{9TrpM&1Iu4n`_TRcZk40wqN>god~Jj0~&oJ%$2O!Kl{wTS!qDe><p3P9sOTV!Pn3!DS!432<5fJ4yV`!vgI6vT7<L$z=E$xe0M%xG&fulwd3Z>nBgqX0%+0LW3f5gj=KV7RV?B(nfARU#s|Oo{8%0^_bf+U9@^mUQeWgBtKbbO;T(qTw}Yi&@@OvxG>7KN<z!PBBACl(3vL2<k{6GqEdrm<mHuz*b7L5+DQz7-@$+Ikjf+m|aaZF~jX+7p7+ik#|G-n?Mf",
    b"{|Xn51QLo%0s)8x5qS*&fC`mS#tmN1^?doE!(!UTb%wUuwg3PC03N`<62@kGv5){jNnjSCw(Z(3JK#{oh#1B&s?nrq@*#9Y_KK2%0JD?+L>b{Rzyl|;!y2XM|LFfChf)ZVk{+JKl|KVWM!tcl8CtS=hJqG54w$MNOyD%vcC^_gB;qnkeS`%kA(i5AjvGg9dcc2w&Lj2|V0b<c-4G+GT#kcQKw(=B^e&EjS^CH9bCd;KwL?~_;e7k~b4*)eI_OD`Mp6jyL_-omK^$Oq<QWw~O#tlzNm2mSZ22}1ouA-)!n0h_e3GiFqEMeG;D9zF3oZcUsN9H-904$FSG%6Jh)8da(4;FjvLm~Nz~>R|n!G=Ze!a)!+3<fBET{lq9G{hT8D%sCc1sF^K!7F5;u2Gz!DWfE0vRj9>0}=wfcp;!lFQ;z_*e8!^~V<OOrr8=IFXW6d)9qS*n5y<U>^",
    b"{|Xn51rmx&0s+_sd3+22fC`mS#tmN1^?doE!(!UTb%wUuwg3PC03N`<62`<cz`_ItkR&oTHaa>oI!2p{#KE>}TVxYZk^sQaOasp89XzFe20V!)0)-xLh)V*%$<Bcm634@7O8$TMdWPo#G*NW{31ON0hB<j*14PbnP{V>0jyzWQ1CC%2D0N>vHiHv<GMv8+W+aAS(BpUb`RU0d7D~)CNll;}JueO@Yplqs;i4Iy3F2&%CEkOC?Z;mN3Xl#pL10rc^q+r-iA0DelFu$s3;;l8c!om+Ve4Ya@I3+_Y1ruw0>JDj0zbNV{6}3K0YNPIjLaL25lt)+DHj8S0}JB<BDw&OP=Xu7P2CR!z_49u>Wl#V#=)XRgoo|iZ7++POfjKwPY{5F^9x95+In|MEJxqWNW3K|t4es;49Jd7$h?^lGr=4tdz{4o$L%&kfMBm_bYwV0zuDD7D3z&=m~FFM0b;hqBE98#?9}9{Y}lL%=nM",
    b"{|Xn51`>)(0s*K6dq4{SfC`mS#tmN1^?doE!(!UTb%wUuwg3PC03N`<62`<cz`_IrkfF%fsOZ?p=xB>LxOQ#pt~uSL1t{b}W31H8(L!-YGy*c42j&WBnjh)#7ce#cAK-{PZsI#I=AFr*r&6G6H%P|141?kHX4bb5z8yXa_GMo!!V&|N!$r^l62i?BMJIfxf6M_$V5k}a-JhIY|B2DZY{ZIKGV|iBh?tJRvUv!h2<QA}fd3mAk-c%~UFB7Q0f4|fgC`sSz!Bk?fc(QJ>0u4w;y@D5cmV==cL)4`NJv8@IY_}Q*k7%ZT9qQg1`#&E)e8VQDmS7dM*s}hm1wSi!l~vMZ-5ylwA2AZnov<<*jHfYI5aT$0~nu?5s{A}XdV{`dukLVU}+iwBB&3+04*@+P*VoLKmy692|?_o<oN1lcUpi)&n3ZISK+nHSsE(5OUQ%4{xXQPQ#^*_Ub@IC6zsipAQu",
    b"{|Xn52NH@)0s*iE$$kp}fC`mS#tmN1^?doE!(!UTb%wUuwg3PC03N`<62`<cz{11~q=_*$Dmp4EI>zYes7TbVgW7A<2vfnKX6!(MrVl6F(L9JWe2#k4#qSX(iSHAvZn+yLj}g{=0BOpDkas9Wq#LKXosePjSdCc8XYZL$59R!Lz}c6vIlCghwIieRzJ6v2eY?tstWKP89qi;Op)}B+fX8`|85CmxLKIZ>IP!SYSi@pm`>FeW3{1m-FW(Nqk--Y>pg_4W03GNV76JEx2NRV{SW~sk9T;GL?tB=O>5hS3e)0jru~`c-2&v!1)J6)ZdjTLv<wkVm2!P?b3hpcrASvebd^6HcqreSFex^9V0`?=85ObS!$*p<Y4*D33)~fhHFXCLyNPoipFG2vu5+WE<5VrpfrRY~+A_=J)#$<YG90qcp0eCMYJlGFIJAs|LLhJ;L?*Y}d#%F*ju|rtY{Yt=wA%Fz|",
)


def box(name: bytes, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + name + body


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("also_in_exif", [False, True], ids=["header", "header and EXIF"])
def test_a_jpeg_xl_is_turned_by_its_header_and_not_by_its_exif_again(orientation: int, also_in_exif: bool) -> None:
    codestream = base64.b85decode(CODESTREAMS[orientation - 1])
    block = b"\0\0\0\0" + exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    data = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ") + box(b"Exif", block)
    data = data + box(b"jxlc", codestream) if also_in_exif else codestream
    header = jxl_header(data)
    assert header is not None
    assert tuple(header) == (96, 64, orientation, False)
    assert near(decode(data), QUARTERS_HWC)


# ------------------------------------------------------------------------------------------ limits and damage


@pytest.mark.parametrize(
    "size", [(1, 1), (7, 9), (8, 8), (256, 256), (257, 100), (1000, 800), (1920, 1080), (40, 3000)]
)
def test_the_size_of_a_jpeg_xl_is_read_before_anything_is_decoded(size: tuple[int, int]) -> None:
    header = jxl_header(encode(Image.new("RGB", size), "JXL", lossless=True, effort=1))
    assert header is not None
    assert (header.width, header.height) == size


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "JPEG2000"])
def test_limits_hold_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.image.decode.MAX_PIXELS", 120 * 160 - 1)
    told: list[int] = []
    with pytest.raises(BadImage) as caught:
        decode_stored(FILES[kind.lower()], told.append, formats=ALL_FORMATS)
    assert (caught.value.code, told) == ("too_large", [])


@pytest.mark.parametrize("name", ["heif", "jxl", "jpeg2000"])
def test_one_that_is_cut_short_is_refused(name: str) -> None:
    data = FILES[name]
    for stop in (*range(16, 200, 17), *range(200, len(data) - 2, max(1, len(data) // 30))):
        with pytest.raises(BadImage) as caught:
            decode(data[:stop])
        assert caught.value.code in ("truncated", "corrupt", "unsupported_format"), stop
    np.testing.assert_array_equal(decode(data + bytes(64)), decode(data))


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "JPEG2000"])
def test_alpha_and_grey(kind: str) -> None:
    alpha_HW = np.zeros(LOOK_HWC.shape[:2], np.uint8)
    alpha_HW[:, 80:] = 255
    clear_HWC = decode(encode(Image.fromarray(np.dstack([LOOK_HWC, alpha_HW])), kind))
    assert (clear_HWC[:, :72] > 250).all()
    assert near(clear_HWC[:, 88:], LOOK_HWC[:, 88:])
    grey = Image.fromarray(LOOK_HWC).convert("L")
    assert near(decode(encode(grey, kind)), np.asarray(grey.convert("RGB")))


def test_what_a_bundle_keeps_of_a_picture_every_job_decodes() -> None:
    for name in ALL_FORMATS:
        kept = in_a_usual_format(FILES[name], ALL_FORMATS, min(LOOK_HWC.shape[:2]))
        assert (kept is FILES[name]) == (name in USUAL_FORMATS)
        assert sniff(kept) in (name.upper(), "PNG")
        np.testing.assert_array_equal(decode(kept, USUAL_FORMATS), decode(FILES[name]))
        if name not in USUAL_FORMATS:  # a photograph would be many times its size
            small_HWC = decode(in_a_usual_format(FILES[name], ALL_FORMATS, min(LOOK_HWC.shape[:2]) // 2), USUAL_FORMATS)
            assert small_HWC.shape[0] == -(-LOOK_HWC.shape[0] // 2)


def test_a_phone_s_picture_is_known_by_its_brand() -> None:
    for brand, known in ((b"heic", "HEIF"), (b"heix", "HEIF"), (b"mif1", "HEIF"), (b"avif", "AVIF"), (b"isom", None)):
        assert sniff(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1miaf") == known
    assert sniff(b"\0\0\0\x18ftypmif1\0\0\0\0miafavif") == "AVIF"


def test_of_a_heif_with_more_pictures_the_primary_one_counts() -> None:
    out = io.BytesIO()
    other = Image.fromarray(255 - LOOK_HWC)
    other.save(out, "HEIF", save_all=True, append_images=[Image.fromarray(LOOK_HWC)], primary_index=1, quality=90)
    assert near(decode(out.getvalue()), LOOK_HWC)
