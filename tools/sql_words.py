"""The words that the SQL model's training questions are made of: what tables hold, what columns are called, what is in them.

English and Korean. Only tools/sql_questions.py reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# singular/plural | Korean | counter | person?
_THINGS = """
customer/customers|고객,손님|명|p
user/users|사용자,유저,회원|명|p
employee/employees|직원,사원|명|p
student/students|학생|명|p
teacher/teachers|교사,선생님|명|p
member/members|회원,멤버|명|p
patient/patients|환자|명|p
doctor/doctors|의사|명|p
nurse/nurses|간호사|명|p
author/authors|작가,저자|명|p
player/players|선수|명|p
driver/drivers|기사,운전자|명|p
actor/actors|배우|명|p
artist/artists|아티스트,예술가|명|p
donor/donors|기부자,후원자|명|p
guest/guests|투숙객,손님|명|p
passenger/passengers|승객|명|p
citizen/citizens|시민|명|p
singer/singers|가수|명|p
worker/workers|근로자,작업자|명|p
manager/managers|관리자,매니저|명|p
client/clients|의뢰인,고객사|명|p
visitor/visitors|방문자,방문객|명|p
subscriber/subscribers|구독자|명|p
seller/sellers|판매자|명|p
buyer/buyers|구매자|명|p
engineer/engineers|엔지니어,기술자|명|p
professor/professors|교수|명|p
tenant/tenants|세입자|명|p
volunteer/volunteers|자원봉사자|명|p
candidate/candidates|지원자,후보자|명|p
person/people|사람|명|p
chef/chefs|요리사|명|p
coach/coaches|코치,감독|명|p
pilot/pilots|조종사|명|p
farmer/farmers|농부|명|p
child/children|아이,어린이|명|p
contact/contacts|연락처|명|p
supplier/suppliers|공급업체,공급자|곳|
vendor/vendors|업체,협력사|곳|
product/products|상품,제품|개|
item/items|품목,아이템|개|
order/orders|주문|건|
sale/sales|판매|건|
purchase/purchases|구매|건|
payment/payments|결제,지불|건|
invoice/invoices|송장,청구서|건|
transaction/transactions|거래|건|
donation/donations|기부,기부금|건|
booking/bookings|예약|건|
reservation/reservations|예약|건|
ticket/tickets|티켓,표|장|
review/reviews|리뷰,후기|개|
comment/comments|댓글|개|
post/posts|게시글,게시물|개|
article/articles|기사,글|개|
book/books|책,도서|권|
movie/movies|영화|편|
film/films|영화|편|
song/songs|노래,곡|곡|
album/albums|앨범|장|
game/games|게임|개|
car/cars|자동차,차|대|
vehicle/vehicles|차량|대|
bike/bikes|자전거|대|
flight/flights|항공편,비행편|편|
train/trains|기차,열차|대|
trip/trips|여행|건|
hotel/hotels|호텔|곳|
room/rooms|방,객실|개|
restaurant/restaurants|식당,음식점|곳|
store/stores|매장,상점,가게|곳|
shop/shops|가게,상점|곳|
branch/branches|지점|곳|
company/companies|회사,기업|곳|
school/schools|학교|곳|
university/universities|대학교,대학|곳|
hospital/hospitals|병원|곳|
department/departments|부서|개|
team/teams|팀|개|
project/projects|프로젝트|개|
task/tasks|작업,업무|개|
event/events|행사,이벤트|개|
meeting/meetings|회의|건|
course/courses|강좌,과목,강의|개|
class/classes|수업|개|
lesson/lessons|수업,레슨|개|
exam/exams|시험|개|
enrollment/enrollments|수강,등록|건|
appointment/appointments|진료 예약,약속|건|
prescription/prescriptions|처방|건|
loan/loans|대출|건|
account/accounts|계좌,계정|개|
card/cards|카드|장|
shipment/shipments|배송|건|
delivery/deliveries|배달,배송|건|
warehouse/warehouses|창고|곳|
package/packages|소포,택배|개|
device/devices|기기,장치|대|
sensor/sensors|센서|개|
machine/machines|기계|대|
server/servers|서버|대|
computer/computers|컴퓨터|대|
phone/phones|전화기,휴대폰|대|
house/houses|집,주택|채|
apartment/apartments|아파트|채|
building/buildings|건물|채|
property/properties|부동산|개|
city/cities|도시|곳|
country/countries|나라,국가|곳|
animal/animals|동물|마리|
pet/pets|반려동물|마리|
dog/dogs|개,강아지|마리|
cat/cats|고양이|마리|
plant/plants|식물|개|
tree/trees|나무|그루|
recipe/recipes|레시피,요리법|개|
dish/dishes|요리|개|
meal/meals|식사|건|
ingredient/ingredients|재료|개|
drug/drugs|약,의약품|개|
match/matches|경기|경기|
video/videos|동영상,영상|개|
photo/photos|사진|장|
message/messages|메시지|개|
file/files|파일|개|
document/documents|문서|개|
log/logs|로그|개|
login/logins|로그인|건|
session/sessions|세션|개|
subscription/subscriptions|구독|건|
contract/contracts|계약|건|
complaint/complaints|불만,민원|건|
ship/ships|배,선박|척|
airport/airports|공항|곳|
station/stations|역|곳|
museum/museums|박물관|곳|
park/parks|공원|곳|
library/libraries|도서관|곳|
toy/toys|장난감|개|
shoe/shoes|신발|켤레|
asset/assets|자산|개|
expense/expenses|지출,비용|건|
accident/accidents|사고|건|
rental/rentals|대여|건|
survey/surveys|설문|건|
campaign/campaigns|캠페인|개|
"""

# identifiers | English | Korean | values | who
_KINDS = """
city,town|city/cities|도시|cities|pt
country,nation|country/countries|국가,나라|countries|pt
region,area|region/regions|지역|regions|pt
department,dept,division|department/departments|부서|departments|p
position,job_title,role,job|position/positions|직책,직위|jobs|p
status,state|status/statuses|상태|statuses|t
category|category/categories|카테고리,분류|categories|t
type,kind|type/types|종류,유형|kinds|t
genre|genre/genres|장르|genres|t
color,colour|color/colors|색상,색깔,색|colors|t
brand|brand/brands|브랜드|brands|t
manufacturer,maker|manufacturer/manufacturers|제조사|brands|t
gender,sex|gender/genders|성별|genders|p
language|language/languages|언어|languages|pt
size|size/sizes|사이즈|sizes|t
payment_method,method|payment method/payment methods|결제 수단,결제 방법|methods|t
major|major/majors|전공|majors|p
subject|subject/subjects|과목|majors|t
grade_level,level|level/levels|등급,레벨|levels|pt
nationality|nationality/nationalities|국적|countries|p
team|team/teams|팀|teams|p
sport|sport/sports|종목|sports|pt
species|species/species|종|animals|t
material|material/materials|소재,재질|materials|t
director|director/directors|감독|people|t
author|author/authors|저자,작가|people|t
publisher|publisher/publishers|출판사|brands|t
manager,supervisor|manager/managers|담당자,관리자|people|pt
owner|owner/owners|소유자,주인|people|t
district|district/districts|구,지구|regions|pt
source|source/sources|출처|kinds|t
plan,membership|plan/plans|요금제,멤버십|plans|p
priority|priority/priorities|우선순위|priorities|t
origin|origin/origins|원산지,출발지|countries|t
destination|destination/destinations|목적지,도착지|cities|t
blood_type|blood type/blood types|혈액형|bloods|p
diagnosis|diagnosis/diagnoses|진단,진단명|diseases|p
"""

# identifiers | English | Korean
_LABELS = """
name|name/names|이름|pt
full_name|full name/full names|이름,성명|p
title|title/titles|제목|t
first_name|first name/first names|이름|p
username,nickname|username/usernames|사용자명,닉네임,별명|p
"""

# identifiers | English | Korean
_TEXTS = """
email,email_address|email/emails|이메일|p
phone,phone_number|phone number/phone numbers|전화번호|p
address|address/addresses|주소|pt
description|description/descriptions|설명|t
notes,memo|note/notes|메모|t
url|url/urls|주소,링크|t
code|code/codes|코드|t
last_name|last name/last names|성|p
content,body|content/contents|내용|t
"""

# identifiers | English | Korean | low-high | units | Korean units | more than | less than | most | least | Korean more | Korean less | who
_NUMBERS = """
price,unit_price|price|가격|1-2000|dollars,won,USD|원,달러|costing more than,pricier than,more expensive than|costing less than,cheaper than|most expensive,priciest,costliest|cheapest,least expensive|비싼|싼,저렴한|t
cost|cost|비용|1-5000|dollars,euros|원,달러|costing more than,more expensive than|costing less than,cheaper than|most expensive,costliest|cheapest,least expensive|비싼|싼|t
amount|amount|금액|1-9000|dollars,won|원,달러|worth more than,larger than|worth less than,smaller than|largest,biggest|smallest|큰|작은|t
total,total_amount|total amount|총액,총 금액|1-9000|dollars,won|원,달러|worth more than|worth less than|largest,biggest|smallest|큰|작은|t
salary|salary|급여,연봉,월급|1000-9000|dollars,won|원,달러|earning more than,making more than,paid more than|earning less than,making less than|highest paid,best paid,top earning|lowest paid,worst paid|많이 받는|적게 받는|p
income|income|소득,수입|1000-9000|dollars|원|earning more than,making over|earning less than|highest earning|lowest earning|많이 버는|적게 버는|p
age|age|나이,연령|5-80|years|살,세|older than|younger than|oldest|youngest|나이 많은,나이가 많은|어린,젊은|p
quantity,qty|quantity|수량|1-300|units,pieces|개|||||많은|적은|t
stock,inventory|stock|재고,재고 수량|0-500|units,pieces|개|||||많은|적은|t
rating|rating|평점,별점|1-5|stars,points|점|rated above,rated higher than|rated below,rated lower than|highest rated,best rated,top rated|lowest rated,worst rated|높은|낮은|t
score|score|점수|1-100|points|점|scoring above,scoring more than|scoring below,scoring less than|highest scoring,top scoring|lowest scoring|높은|낮은|pt
gpa|GPA|학점,평균 평점|1-4|||||||높은|낮은|p
grade|grade|성적|1-100|points|점|||||높은|낮은|p
weight|weight|무게,체중|1-200|kg|kg,킬로그램|heavier than,weighing more than|lighter than,weighing less than|heaviest|lightest|무거운|가벼운|pt
height|height|키,높이|10-300|cm|cm,센티미터|taller than,higher than|shorter than|tallest|shortest|큰|작은|p
length|length|길이|1-300|minutes,meters|분,미터|longer than|shorter than|longest|shortest|긴|짧은|t
duration,runtime|duration|시간,기간,상영 시간|10-300|minutes|분|longer than,lasting more than|shorter than,lasting less than|longest|shortest|긴|짧은|t
distance|distance|거리|1-900|km,miles|km,킬로미터|farther than|closer than|farthest,longest|closest,nearest|먼|가까운|t
population|population|인구|1000-90000|people,inhabitants|명|larger than,more populous than|smaller than,less populous than|most populous,largest|least populous,smallest|많은|적은|t
budget|budget|예산|1000-90000|dollars|원,달러|||||많은,큰|적은,작은|t
revenue|revenue|매출,수익|100-90000|dollars,won|원,달러|||||많은,높은|적은,낮은|t
profit|profit|이익,수익|100-9000|dollars|원|||||많은,높은|적은,낮은|t
balance|balance|잔액,잔고|1-9000|dollars,won|원,달러|||||많은|적은|pt
discount|discount|할인,할인율|1-70|percent|퍼센트,%|||||높은,큰|낮은,작은|t
tax|tax|세금|1-900|dollars|원|||||많은|적은|t
capacity|capacity|정원,수용 인원,용량|10-900|people,seats|명|larger than|smaller than|largest,biggest|smallest|큰|작은|t
pages,page_count|number of pages|페이지 수,쪽수|50-900|pages|페이지,쪽|longer than|shorter than|longest|shortest|많은|적은|t
views,view_count|views|조회수|1-9000|views|회|viewed more than|viewed less than|most viewed,most watched|least viewed|높은,많은|낮은,적은|t
likes|likes|좋아요 수,좋아요|1-900|likes|개|||most liked|least liked|많은|적은|t
points|points|포인트,점수|1-900|points|점|||||많은,높은|적은,낮은|pt
experience,years_experience|experience|경력|1-30|years|년|more experienced than|less experienced than|most experienced|least experienced|많은,긴|적은,짧은|p
speed|speed|속도|10-300|km/h|km|faster than|slower than|fastest|slowest|빠른|느린|t
temperature|temperature|온도,기온|1-50|degrees|도|hotter than,warmer than|colder than,cooler than|hottest,warmest|coldest|높은|낮은|t
area_size,area,square_meters|area|면적,넓이|10-900|square meters|제곱미터,평|larger than,bigger than|smaller than|largest,biggest|smallest|넓은|좁은|t
calories|calories|칼로리|10-900|calories|칼로리|||||높은|낮은|t
credits|credits|학점|1-6|credits|학점|||||많은|적은|t
fee|fee|요금,수수료|1-900|dollars|원,달러|more expensive than|cheaper than|most expensive|cheapest|비싼|싼|t
rent|rent|임대료,월세|100-3000|dollars|원,달러|more expensive than|cheaper than|most expensive|cheapest|비싼|싼|t
goals|goals|골,득점|1-50|goals|골|scoring more than|scoring fewer than|top scoring|lowest scoring|많은|적은|p
votes|votes|득표수,투표수|1-900|votes|표|||||많은|적은|t
mileage|mileage|주행거리|10-9000|km,miles|km|||||긴,많은|짧은,적은|t
power,horsepower|power|출력,마력|10-900|watts|마력,와트|more powerful than|less powerful than|most powerful|least powerful|높은|낮은|t
year,release_year|year|연도,출시 연도,개봉 연도|1950-2025|||newer than|older than|newest,most recent|oldest|||t
floor|floor|층|1-60||층|||||높은|낮은|t
hours|hours|시간|1-60|hours|시간|||||많은,긴|적은,짧은|pt
seats|number of seats|좌석 수|1-300|seats|석|||||많은|적은|t
delay|delay|지연 시간,지연|1-300|minutes|분|||||긴|짧은|t
sales,units_sold|sales|판매량|1-900|units|개|||best selling|worst selling|많은,높은|적은,낮은|t
"""

# identifiers | English | Korean | verb | Korean verb | who
_DATES = """
created_at,created|creation date|생성일,등록일|created,added|생성된,등록된,만들어진|pt
order_date,ordered_at|order date|주문일,주문 날짜|ordered,placed|주문된,주문한,들어온|t
date|date|날짜|made,dated,held|있었던|t
purchase_date,purchased_at|purchase date|구매일|purchased,bought|구매된,구매한|t
payment_date,paid_at|payment date|결제일|paid|결제된,결제한|t
sale_date,sold_at|sale date|판매일|sold|판매된,팔린|t
hire_date,hired_at,hired_on|hire date|입사일|hired,employed|입사한,채용된|p
birth_date,birthday,date_of_birth|birth date|생년월일,생일|born|태어난|p
joined_at,join_date|join date|가입일|joining,who joined|가입한,합류한|p
signup_date,registered_at,registration_date|registration date|가입일,등록일|registered,who signed up|가입한,등록한|p
start_date,starts_at,started_at|start date|시작일|starting,started|시작한,시작된|t
end_date,ends_at|end date|종료일|ending,ended|끝난,종료된|t
due_date,deadline|due date|마감일,기한|due|마감인|t
release_date,released_at|release date|출시일,발매일,개봉일|released|출시된,발매된,개봉한|t
published_at,publish_date|publication date|출판일,게시일|published|출판된,게시된|t
expires_at,expiry_date|expiry date|만료일,유통기한|expiring|만료되는|t
last_login,last_seen|last login|마지막 로그인,최근 접속일|last seen,who last logged in|마지막으로 접속한|p
check_in,checkin_date|check-in date|체크인 날짜|checked in,checking in|체크인한|t
shipped_at,ship_date|ship date|발송일,배송일|shipped|발송된,배송된|t
delivered_at,delivery_date|delivery date|배송일,배달일|delivered|배달된,배송된|t
visit_date,visited_at|visit date|방문일|visiting|방문한|pt
departure_time,departs_at|departure time|출발 시간,출발일|departing,leaving|출발하는,출발한|t
founded,founded_on|founding date|설립일,창립일|founded,established|설립된,창립된|t
donation_date,donated_at|donation date|기부일|donated|기부한,기부된|t
enrolled_at,enrollment_date|enrollment date|입학일,수강일|enrolled,enrolling|입학한,등록한|pt
updated_at|update date|수정일|updated,modified|수정된|t
opened_at,opening_date|opening date|개점일,개설일|opened|문을 연,개설된|t
"""

# identifiers | yes | no | Korean yes | Korean no | who
_FLAGS = """
active,is_active|active|inactive|활성,활성 상태인|비활성,활성 상태가 아닌|pt
paid,is_paid|paid|unpaid|결제된,지불된|결제되지 않은,미결제|t
in_stock|in stock|out of stock|재고가 있는|품절된,재고가 없는|t
available,is_available|available|unavailable|이용 가능한|이용할 수 없는|t
verified,is_verified|verified|unverified|인증된|인증되지 않은|p
premium,is_premium|premium|non-premium|프리미엄|프리미엄이 아닌|p
completed,is_completed,done|completed|incomplete|완료된|완료되지 않은,미완료|t
published,is_published|published|unpublished|공개된,게시된|공개되지 않은|t
deleted,is_deleted|deleted|not deleted|삭제된|삭제되지 않은|pt
returned,is_returned|returned|not returned|반납된,반품된|반납되지 않은|t
married,is_married|married|unmarried|결혼한,기혼|미혼,결혼하지 않은|p
vegetarian,is_vegetarian|vegetarian|non-vegetarian|채식,채식인|채식이 아닌|t
electric,is_electric|electric|non-electric|전기|전기가 아닌|t
cancelled,is_cancelled|cancelled|not cancelled|취소된|취소되지 않은|t
"""

# what columns hold: English values | Korean values, in the same order
_VALUES = {
    "cities": (
        "Seoul,Busan,Incheon,Daegu,Daejeon,Gwangju,Jeju,Paris,London,Berlin,Tokyo,New York,Rome,Madrid,Chicago,Boston,Sydney,Toronto,Beijing,Osaka",
        "서울,부산,인천,대구,대전,광주,제주,파리,런던,베를린,도쿄,뉴욕,로마,마드리드,시카고,보스턴,시드니,토론토,베이징,오사카",
    ),
    "countries": (
        "USA,Canada,Korea,Japan,China,Germany,France,UK,Italy,Spain,Brazil,India,Mexico,Australia,Vietnam,Sweden,Norway,Egypt,Turkey,Thailand",
        "미국,캐나다,한국,일본,중국,독일,프랑스,영국,이탈리아,스페인,브라질,인도,멕시코,호주,베트남,스웨덴,노르웨이,이집트,튀르키예,태국",
    ),
    "regions": (
        "North,South,East,West,Central,Asia,Europe,Gangnam,Mapo,downtown,Northeast,Midwest",
        "북부,남부,동부,서부,중부,아시아,유럽,강남,마포,도심,경기,충청",
    ),
    "departments": (
        "Sales,Marketing,Engineering,HR,Finance,IT,Legal,Support,Research,Design,Operations,Accounting",
        "영업,마케팅,개발,인사,재무,정보,법무,고객지원,연구,디자인,운영,회계",
    ),
    "jobs": (
        "manager,engineer,designer,analyst,developer,director,intern,clerk,accountant,consultant",
        "매니저,엔지니어,디자이너,분석가,개발자,이사,인턴,대리,회계사,과장",
    ),
    "statuses": (
        "pending,shipped,delivered,cancelled,completed,open,closed,paid,active,failed,refunded,approved,rejected,processing",
        "대기,발송,배송완료,취소,완료,진행중,종료,결제완료,활성,실패,환불,승인,거절,처리중",
    ),
    "categories": (
        "Electronics,Books,Toys,Clothing,Food,Sports,Garden,Beauty,Furniture,Music,Health,Office",
        "전자제품,도서,장난감,의류,식품,스포츠,정원,뷰티,가구,음악,건강,사무용품",
    ),
    "kinds": (
        "basic,online,public,private,standard,express,internal,external,mobile,web,new,used",
        "기본,온라인,공공,개인,일반,급행,내부,외부,모바일,웹,신규,중고",
    ),
    "genres": (
        "Comedy,Drama,Action,Horror,Fantasy,Romance,Jazz,Rock,Pop,Thriller,Mystery,Classical,Sci-Fi",
        "코미디,드라마,액션,공포,판타지,로맨스,재즈,록,팝,스릴러,추리,클래식,공상과학",
    ),
    "colors": (
        "red,blue,green,black,white,yellow,silver,pink,brown,gray",
        "빨간색,파란색,초록색,검은색,흰색,노란색,은색,분홍색,갈색,회색",
    ),
    "brands": (
        "Samsung,Apple,Sony,Nike,Toyota,Hyundai,Lego,Dell,LG,Acme,Bosch,Honda,Nova,Zenith",
        "삼성,애플,소니,나이키,토요타,현대,레고,델,엘지,아크메,보쉬,혼다,노바,제니스",
    ),
    "genders": ("male,female,F,M", "남성,여성,여자,남자"),
    "languages": (
        "English,Korean,French,German,Spanish,Japanese,Chinese,Italian",
        "영어,한국어,프랑스어,독일어,스페인어,일본어,중국어,이탈리아어",
    ),
    "sizes": ("S,M,L,XL,small,medium,large", "소,중,대,특대,소형,중형,대형"),
    "methods": ("card,cash,transfer,PayPal,check", "카드,현금,계좌이체,페이팔,수표"),
    "majors": (
        "Math,Physics,Biology,History,Law,Economics,Computer Science,Chemistry,Music,Art",
        "수학,물리학,생물학,역사,법학,경제학,컴퓨터공학,화학,음악,미술",
    ),
    "levels": (
        "beginner,intermediate,advanced,gold,silver,VIP,junior,senior",
        "초급,중급,고급,골드,실버,VIP,주니어,시니어",
    ),
    "teams": (
        "Tigers,Lions,Eagles,Bears,Alpha,Red Sox,Dragons,Falcons",
        "타이거즈,라이온즈,이글스,베어스,알파,레드삭스,드래곤즈,팔콘스",
    ),
    "sports": ("soccer,tennis,baseball,basketball,golf,swimming,hockey", "축구,테니스,야구,농구,골프,수영,하키"),
    "animals": ("dog,cat,rabbit,bird,horse,fish,snake,oak", "개,고양이,토끼,새,말,물고기,뱀,참나무"),
    "materials": ("wood,steel,cotton,leather,glass,plastic,gold", "나무,강철,면,가죽,유리,플라스틱,금"),
    "people": (
        "John Smith,Jane Doe,Maria Garcia,Tom Brown,Anna Lee,David Kim,Sara Novak,James Cameron,Emma Stone,Bob,Alice,Peter,Olivia Park,Liam Chen",
        "김철수,이영희,박지성,최민수,홍길동,정수빈,강하늘,윤서연,한지민,조현우,임영웅,봉준호,김민지,이순신",
    ),
    "plans": ("free,basic,pro,premium,enterprise,gold", "무료,베이직,프로,프리미엄,기업용,골드"),
    "priorities": ("high,low,medium,urgent,critical", "높음,낮음,보통,긴급,심각"),
    "bloods": ("A,B,O,AB", "A,B,O,AB"),
    "diseases": ("flu,diabetes,asthma,cold,cancer,migraine", "독감,당뇨,천식,감기,암,편두통"),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """What a table holds; `counter` is the Korean word that it is counted in."""

    one: str
    many: str
    korean: tuple[str, ...]
    counter: str
    person: bool


@dataclass(frozen=True, slots=True)
class Attribute:
    """A kind of column: its identifiers, its English name (and plural), its Korean names, and words by their use."""

    kind: str  # label, text, group, number, date, flag
    idents: tuple[str, ...]
    one: str
    many: str
    korean: tuple[str, ...]
    who: str
    words: dict[str, tuple[str, ...]]
    low: int = 0
    high: int = 0
    values: str = ""


def things() -> tuple[Thing, ...]:
    """Everything that a training table may hold."""
    found: list[Thing] = []
    for line in filter(None, _THINGS.split("\n")):
        names, korean, counter, person = line.split("|")
        one, many = names.split("/")
        found.append(Thing(one, many, _split(korean), counter, person == "p"))
    return tuple(found)


def values(name: str) -> list[tuple[str, str]]:
    """Pairs of an English value and its Korean."""
    english, korean = _VALUES[name]
    return list(zip(english.split(","), korean.split(","), strict=True))


def attributes() -> tuple[Attribute, ...]:
    """Every kind of column."""
    found: list[Attribute] = []
    for kind, table in (("label", _LABELS), ("text", _TEXTS), ("group", _KINDS)):
        for line in table.strip().split("\n"):
            idents, names, korean, *rest = line.split("|")
            one, many = names.split("/")
            pool = rest[0] if kind == "group" else ""
            found.append(Attribute(kind, _split(idents), one, many, _split(korean), rest[-1], {}, values=pool))
    for line in _NUMBERS.strip().split("\n"):
        idents, name, korean, span, *rest = line.split("|")
        keys = ("units", "ko_units", "more", "less", "most", "least", "ko_more", "ko_less")
        low, high = span.split("-")
        words = dict(zip(keys, map(_split, rest), strict=False))
        found.append(
            Attribute("number", _split(idents), name, name, _split(korean), rest[-1], words, int(low), int(high))
        )
    for line in _DATES.strip().split("\n"):
        idents, name, korean, verbs, ko_verbs, who = line.split("|")
        words = {"verbs": _split(verbs), "ko_verbs": _split(ko_verbs)}
        found.append(Attribute("date", _split(idents), name, name, _split(korean), who, words))
    for line in _FLAGS.strip().split("\n"):
        idents, yes, no, ko_yes, ko_no, who = line.split("|")
        words = {"yes": _split(yes), "no": _split(no), "ko_yes": _split(ko_yes), "ko_no": _split(ko_no)}
        found.append(Attribute("flag", _split(idents), yes, yes, _split(ko_yes), who, words))
    return tuple(found)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


_ALIKE = """
> above over exceeding exceeds greater more higher 초과 초과인 초과하는 넘는 큰 높은 많은 after later 후에
< below under less fewer lower smaller 미만 미만인 미만의 작은 낮은 적은 before prior earlier 이전에 전에
least >= since 이상 이상인 이상의 이후에 부터
most <= 이하 이하인 이하의 최대
sum total combined overall summed altogether 총 합계 총합 합 전체
avg average mean 평균
max maximum highest largest greatest biggest 최대 최고
min minimum lowest smallest 최소 최저
count how many number 수 개수 몇 세어줘
distinct different unique 고유한 서로 중복 종류
order sorted ordered sort 순으로 정렬 정렬해줘 정렬해서 순서대로
desc descending latest newest last recent most highest top 내림차순으로 최신순으로 최근 가장 제일 상위
limit first top
group per each by every grouped 별 별로 각 마다
null without no missing 없는 비어
having which have
between from to 사이 사이인 부터 까지
like contains includes containing 포함하는 들어간 포함된
in or either 또는
not except other outside 아닌 제외한 외의
join and of
left never without no 없는 없고
select show list find get give display 보여줘 알려줘 찾아줘 목록 조회해줘
where with whose that 인
strftime in year 년 년에 during month 월에
"""


def meanings() -> dict[str, tuple[str, ...]]:
    """Words of both languages, in lower case, and what they stand for; words that stand for much stand for nothing."""
    found: dict[str, set[str]] = {}

    def add(text: str, meaning: str) -> None:
        for word in re.findall(r"[a-z]+|[가-힣]+|[<>=]+", text.lower()):
            if len(word) > 1 or not word.isascii() or not word.isalpha():
                found.setdefault(word, set()).add(meaning)

    for thing in things():
        add(" ".join((thing.one, thing.many, *thing.korean)), f"thing {thing.one}")
    for a in attributes():
        words = [word for name, group in a.words.items() for word in group if name not in ("units", "ko_units")]
        add(" ".join((*a.idents, a.one, a.many, *a.korean, *words)).replace("_", " "), f"column {a.idents[0]}")
    for pool in _VALUES:
        for english, korean in values(pool):
            add(f"{english} {korean}", f"value {english}")
    for line in _ALIKE.strip().split("\n"):
        add(line, f"use {line.split()[0]}")
    uses = {word: {one for one in several if one.startswith("use ")} for word, several in found.items()}
    kept = {word: several if len(several) <= 4 else uses[word] for word, several in found.items()}
    return {word: tuple(sorted(several)) for word, several in kept.items() if several}
